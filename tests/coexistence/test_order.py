"""Whoever comes first: the code that runs in the end, and the state that says so.

Every row is a process of its own, with a function, a method and a classmethod that we patch and that sglang's own hook
registry (the real one of the newest release) or another overlay fills as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.coexistence.stage import SLOTS, SOURCE
from tests.unit.engine_support import RELEASES, python, synthetic

NEWEST = "0.5.23"
HOOKS = "sglang/srt/plugins/hook_registry.py"

pytestmark = pytest.mark.skipif(NEWEST not in RELEASES, reason=f"{NEWEST} is not here: run `make releases`")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hooks = (RELEASES[NEWEST] / HOOKS).read_text()
    return synthetic(tmp_path_factory.mktemp("sglang"), alpha=SOURCE, plugins__hook_registry=hooks)


ORDERS = [
    # import, install, uninstall, reload
    ("activate load", "ours", "applied"),
    ("load activate", "ours", "applied"),
    ("activate load uninstall", "upstream", "rolled-back"),
    ("activate load uninstall activate", "ours", "applied"),
    ("activate load uninstall reload", "upstream", "rolled-back"),
    ("activate load reload", "upstream", "conflict"),
    ("activate load forget load", "upstream", "conflict"),
    ("load reload activate", "ours", "applied"),
    ("activate load activate", "ours", "conflict"),
    # the hook registry of sglang
    ("activate hook:before", "ours", "applied"),
    ("activate hook:after", "hook(ours)", "applied"),
    ("activate hook:around", "hook(ours)", "applied"),
    ("load activate hook:around", "hook(ours)", "applied"),
    ("register:around activate apply", "hook(ours)", "applied"),
    ("register:around activate load apply", "hook(ours)", "applied"),
    ("hook:around activate", "hook(upstream)", "conflict"),
    ("hook:before activate", "upstream", "conflict"),
    ("hook:replace activate", "hook", "conflict"),
    ("activate hook:replace", "hook", "conflict"),
    ("activate load uninstall hook:around", "hook(upstream)", "rolled-back"),
    ("activate hook:around reload", "upstream", "conflict"),
    ("activate hook:around uninstall", "hook(ours)", "conflict"),
    # another overlay
    ("activate other:replaces", "theirs", "conflict"),
    ("other:replaces activate", "theirs", "conflict"),
    ("activate other:wraps", "theirs(ours)", "applied"),
    ("other:wraps activate", "theirs(upstream)", "conflict"),
    ("activate other:wrapt", "theirs(ours)", "applied"),
    ("other:wrapt activate", "theirs(upstream)", "conflict"),
    ("activate other:replaces leaves", "ours", "applied"),
    ("activate other:wrapt leaves uninstall", "upstream", "rolled-back"),
    ("other:wrapt leaves activate", "ours", "applied"),
    ("activate other:wrapt uninstall leaves", "ours", "conflict"),
    ("activate other:replaces uninstall", "theirs", "conflict"),
    # both, and ours put around upstream with wrapt
    ("activate hook:around other:wrapt", "theirs(hook(ours))", "applied"),
    ("hook:around activate other:wraps", "theirs(hook(upstream))", "conflict"),
    ("wrapping activate load", "ours(upstream)", "applied"),
    ("wrapping activate load uninstall", "upstream", "rolled-back"),
    ("wrapping activate other:wrapt", "theirs(ours(upstream))", "applied"),
    ("wrapping hook:around activate", "hook(upstream)", "conflict"),
    ("wrapping activate other:replaces", "theirs", "conflict"),
]


#: The hook registry takes the function out of a classmethod (hook_registry.py, `raw_attr.__func__`), and with it leaves
#: out whatever wrapt had put around that classmethod.
UNWRAPPED = [
    ("activate other:wrapt hook:around", ("hook(theirs(ours))", "applied"), ("hook(ours)", "applied")),
    ("wrapping activate hook:around", ("hook(ours(upstream))", "applied"), ("hook(upstream)", "conflict")),
]

End = dict[str, tuple[str, str]]


def end(tree: Path, run_dir: Path, acts: str) -> End:
    """Kind of slot -> what runs there and the state that was reported, by the process and in its status file."""
    ended = python(
        "-m", "tests.coexistence.stage", *acts.split(), path=(tree,), environ={"AMD_SGLANG_RUN_DIR": str(run_dir)}
    )
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("END ")]
    found: End = {kind: (runs, state) for kind, (runs, state) in json.loads(line.removeprefix("END ")).items()}
    assert {kind: state for kind, (state, _) in ended.states().items()} == {k: state for k, (_, state) in found.items()}
    return found


@pytest.mark.parametrize(("acts", "runs", "state"), ORDERS, ids=[row[0] for row in ORDERS])
def test_who_runs_in_the_end(tree: Path, tmp_path: Path, acts: str, runs: str, state: str) -> None:
    assert end(tree, tmp_path, acts) == dict.fromkeys(SLOTS, (runs, state))


@pytest.mark.parametrize(("acts", "plain", "bound"), UNWRAPPED, ids=[row[0] for row in UNWRAPPED])
def test_a_hook_that_unwraps_a_classmethod(
    tree: Path, tmp_path: Path, acts: str, plain: tuple[str, str], bound: tuple[str, str]
) -> None:
    assert end(tree, tmp_path, acts) == {"function": plain, "method": plain, "classmethod": bound}
