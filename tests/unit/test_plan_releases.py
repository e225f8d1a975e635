"""The built-in patches against real releases, read as text."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from overlay.model import Decision, State
from overlay.plan import Plan, make_plan
from overlay.registry import Registry, builtin
from overlay.source import DirectoryTree
from tests.unit.engine_support import LAYERNORM, RELEASES, ROCM, python, slim_copy

pytestmark = pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")

ON = {"SGLANG_USE_AITER": "1"}


def plan(root: Path, environ: dict[str, str] | None = None) -> Plan:
    return make_plan(builtin(), DirectoryTree(root), ROCM, environ or {})


def gemma(root: Path, environ: dict[str, str] | None = None) -> Decision:
    alone = Registry([builtin().get("gemma-rmsnorm", "this test")])
    return make_plan(alone, DirectoryTree(root), ROCM, environ or {}).decisions[0]


@pytest.mark.parametrize("aiter", [{}, ON], ids=["without aiter", "with aiter"])
@pytest.mark.parametrize("release", RELEASES)
def test_gemma_rmsnorm(release: str, aiter: dict[str, str]) -> None:
    version = Version(release)
    if version < Version("0.5.10"):
        expected = ("unfused", State.PLANNED)
    elif version < Version("0.5.16"):
        expected = ("rounded-weight", State.PLANNED)
    else:
        expected = ("triton-with-aiter", State.CONTAINED if aiter else State.PLANNED)
    decision = gemma(RELEASES[release], aiter)
    assert decision.variant is not None
    assert (decision.variant.name, decision.state) == expected
    assert "fingerprint" not in decision.reason


@pytest.mark.parametrize(("value", "on"), [("true", True), ("TRUE", True), ("0", False), ("yes", False), ("", False)])
def test_contained_follows_upstreams_reading_of_the_switch(value: str, on: bool) -> None:
    newest = RELEASES[max(RELEASES, key=Version)]
    assert (gemma(newest, {"SGLANG_USE_AITER": value}).state is State.CONTAINED) is on


def _edited(source: str, qualname: str) -> str:
    """The module with one constant added to one method."""
    owner, _, name = qualname.partition(".")
    tree = ast.parse(source)
    klass = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner)
    method = next((n for n in klass.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    lines = source.splitlines(keepends=True)
    if method is None:
        lines.insert(klass.body[0].lineno - 1, f"    def {name}(self): return None\n")
    else:
        lines.insert(method.body[-1].lineno - 1, " " * method.body[-1].col_offset + "0\n")
    return "".join(lines)


@pytest.mark.parametrize("method", ["__init__", "forward_hip", "forward_native"])
@pytest.mark.parametrize("release", RELEASES)
def test_one_token_more_in_any_slot_is_a_mismatch(tmp_path: Path, release: str, method: str) -> None:
    root = slim_copy(RELEASES[release], tmp_path)
    assert gemma(root) == gemma(RELEASES[release])
    source = (root / LAYERNORM).read_text()
    (root / LAYERNORM).write_text(_edited(source, f"GemmaRMSNorm.{method}"))
    decision = gemma(root)
    assert decision.state is State.SOURCE_MISMATCH
    assert f"GemmaRMSNorm.{method} is unknown code" in decision.reason


@pytest.mark.parametrize("release", RELEASES)
def test_a_version_that_makes_no_sense_changes_no_decision_that_fingerprints_can_make(
    tmp_path: Path, release: str
) -> None:
    root = slim_copy(RELEASES[release], tmp_path)
    honest = plan(root, ON)
    for name in ("_version.py", "version.py"):
        (root / "sglang" / name).write_text("__version__ = 'jabberwocky'\n")
    nonsense = plan(root, ON)
    note = " [version 'jabberwocky' is of kind unknown: decided by fingerprint]"
    for before, after in zip(honest.decisions, nonsense.decisions, strict=True):
        if before.state in (State.PLANNED, State.CONTAINED):
            assert after == replace(before, reason=before.reason + note)
        else:
            assert after.state is not State.PLANNED, f"{before.patch.id}: {after.reason}"


def test_the_digest_is_the_same_in_another_process_and_another_place(tmp_path: Path) -> None:
    release = next(iter(RELEASES))
    ended = python(
        "-c", "from launcher import main; main()", "patches", "plan", "--json", "--platform", "rocm", "--sglang",
        str(slim_copy(RELEASES[release], tmp_path)), environ={"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert json.loads(ended.out)["digest"] == plan(RELEASES[release]).digest


_IMPORTED = """
import json, sys
from overlay.commands import main
try:
    main(sys.argv[1:], standalone_mode=False)
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("patches", "plan"),
        ("patches", "list"),
        ("patches", "explain", "gemma-rmsnorm"),
        ("patches", "diff", "gemma-rmsnorm"),
        ("patches", "status"),
    ],
)
def test_looking_imports_neither_sglang_nor_torch(command: tuple[str, ...]) -> None:
    ended = python("-c", _IMPORTED, *command)
    assert ended.code == 0, ended.err
    loaded = set(json.loads(ended.err.splitlines()[-1]))
    assert "overlay" in loaded
    assert loaded.isdisjoint({"sglang", "torch", "triton", "aiter", "numpy"})
