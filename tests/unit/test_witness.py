"""What a process of sglang says about itself: role and ranks."""

from __future__ import annotations

import ast
import sys
from types import ModuleType
from typing import Any

import pytest

from overlay import fingerprint, witness
from overlay.install import Ledger
from overlay.model import ABSENT, Slot
from tests.unit.engine_support import RELEASES


@pytest.mark.parametrize(
    ("title", "ranks"),
    [
        ("sglang::scheduler", {}),
        ("sglang::scheduler_TP0", {"tp": 0}),
        ("sglang::scheduler_TP13", {"tp": 13}),
        ("sglang::scheduler_DP1_PP0_TP3_EP2", {"dp": 1, "pp": 0, "tp": 3, "ep": 2}),
        ("sglang::scheduler_DP0_ATTN_CP1_MOE_DP0_TP1", {"dp": 0, "attn_cp": 1, "moe_dp": 0, "tp": 1}),
        ("sglang::detokenizer", {}),
        ("sglang::detokenizer_router", {}),
        ("sglang::data_parallel_controller", {}),
        ("sglang::tokenizer_worker:4711", {}),
        ("python -m sglang.launch_server --tp 2", {}),
        ("/opt/x_TP1/python", {}),
        ("", {}),
    ],
)
def test_ranks_of_a_title(title: str, ranks: dict[str, int]) -> None:
    assert witness.ranks(title) == ranks


def _prefixes(release: str) -> list[str]:
    """The literal pieces that run_scheduler_process, or its helper, adds to a process title: " DP", " ATTN_CP", ..."""
    source = (RELEASES[release] / "sglang/srt/managers/scheduler.py").read_bytes()
    pieces = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == "prefix":
            assert isinstance(node.value, ast.JoinedStr)
            first = node.value.values[0]
            assert isinstance(first, ast.Constant)
            pieces.append(str(first.value))
    return pieces


@pytest.mark.parametrize("release", RELEASES)
def test_every_rank_a_real_release_puts_into_its_title_is_understood(release: str) -> None:
    pieces = _prefixes(release)
    assert " TP" in pieces
    title = "sglang::scheduler" + "".join(f"{piece}{at}" for at, piece in enumerate(pieces)).replace(" ", "_")
    assert witness.ranks(title) == {piece.strip().lower(): at for at, piece in enumerate(pieces)}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("slot", [*(seam.slot for seam in witness.SEAMS), witness.CONNECT], ids=str)
def test_every_seam_is_in_every_real_release(release: str, slot: Slot) -> None:
    file = RELEASES[release] / f"{slot.module.replace('.', '/')}.py"
    tree = fingerprint.parse(file.read_bytes())
    assert tree is not None
    assert len(fingerprint.observe(tree, slot.qualname)) == 16 != len(ABSENT)


class Manager:
    def __init__(self, fails: bool = False) -> None:
        self.built = True
        if fails:
            raise ValueError("no such model")


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a manager and a function that connects ranks, in place of sglang's."""
    module: Any = ModuleType("witness_sandbox")
    module.Manager = type("Manager", (Manager,), {"__init__": Manager.__init__})
    module.connect = lambda rank: rank + 1
    monkeypatch.setitem(sys.modules, "witness_sandbox", module)
    monkeypatch.setattr(witness, "SEAMS", (witness.Seam(Slot("witness_sandbox", "Manager.__init__"), "engine"),))
    monkeypatch.setattr(witness, "CONNECT", Slot("witness_sandbox", "connect"))
    monkeypatch.setattr(witness, "_title", lambda: "sglang::scheduler_TP1")
    return module


def test_a_witness_is_told_after_the_object_was_built(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, dict[str, int]]] = []
    targets = witness.targets(
        lambda role, ranks: told.append((role, ranks)), lambda ranks: told.append(("rank", ranks))
    )
    Ledger().install("w", targets)
    with pytest.raises(ValueError, match="no such model"):
        sandbox.Manager(fails=True)
    assert told == []
    assert sandbox.Manager().built
    assert told == [("engine", {"tp": 1})]
    monkeypatch.setitem(sys.modules, "sglang.srt.entrypoints.http_server", ModuleType("http_server"))
    sandbox.Manager()
    assert told[1][0] == "http-server"
    assert sandbox.connect(rank=1) == 2
    assert told[2] == ("rank", {"tp": 1})
