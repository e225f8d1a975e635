"""One process: patches applied the moment their modules have executed, reported as they are, undone on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.scenarios import ACTIVATE, ALPHA, BETA, SHOW, Scenario

UPSTREAM, PATCHED = "upstream", "patched"


UNDO = "r.uninstall('alpha')\n"
FROM = "from sglang.srt.alpha import Alpha as early\n"
LAZY = "importlib.import_module('sglang.srt.alpha')\n"
REIMPORT = "del sys.modules['sglang.srt.alpha'], sys.modules['sglang.srt'].alpha\n"
RELOAD = "importlib.reload(sys.modules['sglang.srt.alpha'])\n"


@pytest.mark.parametrize(
    ("code", "alpha", "state"),
    [
        (ACTIVATE + ALPHA, PATCHED, "applied"),
        (ACTIVATE + BETA + ALPHA, PATCHED, "applied"),
        (ACTIVATE + FROM, PATCHED, "applied"),
        (ACTIVATE + LAZY, PATCHED, "applied"),
        ("import sglang\n" + ACTIVATE + ALPHA, PATCHED, "applied"),
        (ALPHA + ACTIVATE, PATCHED, "applied"),
        (FROM + ACTIVATE, PATCHED, "applied"),
        (ACTIVATE + "import sglang\n", PATCHED, "applied"),
        (ACTIVATE + ALPHA + ACTIVATE, PATCHED, "conflict"),
        (ACTIVATE + ALPHA + UNDO, UPSTREAM, "rolled-back"),
        (ALPHA + ACTIVATE + UNDO, UPSTREAM, "rolled-back"),
        (ACTIVATE + ALPHA + UNDO + ACTIVATE, PATCHED, "applied"),
        (ACTIVATE + ALPHA + UNDO + ALPHA, UPSTREAM, "rolled-back"),
        (ACTIVATE + ALPHA + UNDO + RELOAD, UPSTREAM, "rolled-back"),
    ],
)
def test_the_order_of_importing_activating_and_undoing(scenario: Scenario, code: str, alpha: str, state: str) -> None:
    ended = scenario("alpha", code + SHOW)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == [alpha, UPSTREAM]
    assert ended.states()["alpha"][0] == state


@pytest.mark.parametrize("again", [RELOAD, REIMPORT + ALPHA], ids=["reload", "import again"])
def test_a_module_that_executes_again_is_not_reported_as_patched_unless_it_is(scenario: Scenario, again: str) -> None:
    ended = scenario("alpha", ACTIVATE + ALPHA + again + "r.ready('scheduler', {})\n" + SHOW)
    assert ended.code == 0, ended.err
    patched = json.loads(ended.out)[0] == PATCHED
    assert (ended.states()["alpha"][0] == "applied") is patched


def test_a_module_sees_its_own_patch_before_anyone_who_imports_it(scenario: Scenario) -> None:
    ended = scenario("alpha", ACTIVATE + FROM + "print(early().forward())\n")
    assert ended.out == "patched\n"


@pytest.mark.parametrize("order", [(ALPHA, BETA), (BETA, ALPHA)])
def test_a_patch_of_two_modules_waits_for_the_last(scenario: Scenario, order: tuple[str, str]) -> None:
    states = "print(r.ledger.__contains__('alpha'))\n"
    ended = scenario("group", ACTIVATE + order[0] + states + order[1] + states + SHOW)
    assert ended.out.splitlines() == ["False", "True", json.dumps([PATCHED, PATCHED])]
    assert ended.err == "", "nothing was tried before both were there"


def test_a_patch_that_fails_neither_breaks_the_import_nor_counts_as_applied(scenario: Scenario) -> None:
    ended = scenario("raising", ACTIVATE + SHOW)
    assert (ended.code, json.loads(ended.out)) == (0, [UPSTREAM, UPSTREAM])
    assert ended.states() == {"alpha": ("failed", "RuntimeError: no kernel for this GPU")}
    assert "[amd-sglang] alpha is failed: RuntimeError: no kernel for this GPU" in ended.err


def test_a_patch_is_not_applied_if_the_one_it_requires_failed(scenario: Scenario) -> None:
    ended = scenario("needing", ACTIVATE + SHOW)
    assert ended.states()["alpha"][0] == "failed"
    assert (json.loads(ended.out)[1], ended.states()["beta"][0] == "applied") == (UPSTREAM, False)


TAKE = ALPHA + "sglang.srt.alpha.Alpha.forward = lambda self: 'theirs'\n"


def test_a_slot_somebody_filled_first_is_left_to_them(scenario: Scenario) -> None:
    ended = scenario("alpha beta", TAKE + ACTIVATE + SHOW)
    assert json.loads(ended.out) == ["theirs", PATCHED]
    state, reason = ended.states()["alpha"]
    assert state == "conflict"
    assert reason.startswith("sglang.srt.alpha:Alpha.forward holds __main__.<lambda> (function), which is not")
    assert ended.states()["beta"][0] == "applied"


def test_a_slot_somebody_fills_afterwards_is_seen_when_the_process_is_ready(scenario: Scenario) -> None:
    ended = scenario("alpha", ACTIVATE + TAKE + "r.ready('scheduler', {'tp': 1})\n")
    state, reason = ended.states()["alpha"]
    assert (state, ended.code) == ("conflict", 0)
    assert reason == "sglang.srt.alpha:Alpha.forward was replaced afterwards by __main__.<lambda> (function)"
    (process,) = ended.processes
    assert (process["role"], process["ranks"], process["ready"]) == ("scheduler", {"tp": 1}, True)


AROUND = """
import functools, sglang.srt.alpha
inner = sglang.srt.alpha.Alpha.forward
@functools.wraps(inner)
def around(*args, **kwargs): return inner(*args, **kwargs)
sglang.srt.alpha.Alpha.forward = around
r.ready('scheduler', {})
"""


@pytest.mark.parametrize("patches", ["alpha", "wrapping"])
def test_a_hook_around_ours_is_no_conflict(scenario: Scenario, patches: str) -> None:
    ended = scenario(patches, ACTIVATE + AROUND + SHOW)
    assert json.loads(ended.out)[0] in ("patched", "around upstream")
    assert ended.states()["alpha"][0] == "applied"


STACKS = pytest.mark.parametrize("stack", ["wrapped twice", "replaced twice"])


@STACKS
@pytest.mark.parametrize("order", [(ALPHA, BETA), (BETA, ALPHA)])
def test_a_patch_may_stand_upon_one_it_requires(scenario: Scenario, stack: str, order: tuple[str, str]) -> None:
    ended = scenario(stack, ACTIVATE + "".join(order) + "r.ready('scheduler', {})\n" + SHOW)
    assert json.loads(ended.out) == ["around patched", PATCHED]
    assert {name: state for name, (state, _) in ended.states().items()} == {"alpha": "applied", "beta": "applied"}


@STACKS
def test_a_stack_is_taken_down_from_the_top(scenario: Scenario, stack: str) -> None:
    ended = scenario(stack, ACTIVATE + ALPHA + BETA + UNDO + SHOW)
    assert json.loads(ended.out) == [UPSTREAM, UPSTREAM]
    assert {state for state, _ in ended.states().values()} == {"rolled-back"}


@STACKS
def test_a_hook_around_a_stack_is_no_conflict(scenario: Scenario, stack: str) -> None:
    ended = scenario(stack, ACTIVATE + ALPHA + BETA + AROUND)
    assert {state for state, _ in ended.states().values()} == {"applied"}, ended.err


@STACKS
def test_a_stack_that_somebody_replaced_is_lost_for_both(scenario: Scenario, stack: str) -> None:
    ended = scenario(stack, ACTIVATE + BETA + TAKE + "r.ready('scheduler', {})\n")
    assert {state for state, _ in ended.states().values()} == {"conflict"}


def test_a_patch_is_not_put_upon_a_slot_that_was_taken_from_the_one_it_requires(scenario: Scenario) -> None:
    ended = scenario("wrapped twice", ACTIVATE + TAKE + BETA + SHOW)
    assert json.loads(ended.out) == ["theirs", UPSTREAM]
    assert ended.states()["beta"][0] == "conflict"


def test_ready_never_raises_into_sglang(scenario: Scenario) -> None:
    ended = scenario("alpha", ACTIVATE + ALPHA + "del sys.modules['sglang.srt.alpha']\nr.ready('scheduler', {})\n")
    assert ended.code == 0, ended.err
    assert ended.states()["alpha"][0] != "applied"


def test_a_torch_that_is_no_rocm_build_after_all_is_not_patched(scenario: Scenario) -> None:
    code = ACTIVATE + "import torch\ntorch.version.hip = None\n" + SHOW
    ended = scenario("alpha", code)
    assert json.loads(ended.out) == [UPSTREAM, UPSTREAM]
    assert ended.states()["alpha"][0] == "unsupported-platform"


def test_another_plan_than_the_announced_one_is_said(scenario: Scenario) -> None:
    ended = scenario("alpha", ACTIVATE, AMD_SGLANG_PLAN="0123456789abcdef")
    assert "the launcher announced 0123456789abcdef" in ended.err
    assert "announced" not in scenario("alpha", ACTIVATE).err


FORK = """
pid = os.fork()
if pid == 0:
    print(results().alpha, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_forked_child_reports_itself(scenario: Scenario) -> None:
    ended = scenario("alpha", ACTIVATE + ALPHA + "r.ready('scheduler', {'tp': 0})\n" + FORK)
    assert ended.out == "patched\n"
    processes = {process["role"]: process for process in ended.processes}
    assert set(processes) == {"scheduler", "forked"}
    child, parent = processes["forked"], processes["scheduler"]
    assert (child["ppid"], child["ready"], child["ranks"]) == (parent["pid"], False, {})
    assert child["pid"] != parent["pid"]
    assert child["patches"] == parent["patches"]


def test_a_status_that_cannot_be_written_is_said_once_and_serving_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("a file where the folder was")
    ended = scenario("alpha", ACTIVATE + SHOW)
    assert (ended.code, json.loads(ended.out)) == (0, [PATCHED, UPSTREAM])
    assert ended.err.count("cannot write the status of pid") == 1
