"""A kernel that fails in the middle of serving: off at once, in this process, said once, and seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from overlay import guard as guards
from overlay import shadow, status
from overlay.bound import Bound, absolute
from overlay.counters import CALLS, FAILURES, SHADOWED
from overlay.errors import MalformedSwitchError
from tests.unit.engine_support import clean_environ
from tests.unit.scenarios import ACTIVATE, ALPHA, PRELUDE, Scenario

FAIL = "os.environ['KERNEL'] = 'no such instruction'\n"
CALL = "print(results().alpha)\n"
REASON = "its kernel failed, upstream's path serves: RuntimeError: no such instruction"


def patch_of(row: dict[str, Any]) -> dict[str, Any]:
    (patch,) = row["patches"]
    return cast(dict[str, Any], patch)


def test_the_first_failure_ends_it_and_is_said_once(scenario: Scenario) -> None:
    ended = scenario("guarded", ACTIVATE + ALPHA + FAIL + CALL + "del os.environ['KERNEL']\n" + CALL)
    assert (ended.code, ended.out) == (0, "upstream\nupstream\n")
    assert ended.err.count(f"alpha is failed: {REASON}") == 1
    assert "raise RuntimeError(os.environ" in ended.err, "where it came from"
    (row,) = status.read_runs(scenario.run_dir)
    patch = patch_of(row)
    assert (patch["state"], patch["reason"]) == ("failed", REASON)
    assert patch["counters"] == {"calls": 0, "fallbacks": 0, "failures": 1, "shadowed": 0}
    assert patch["worst_error"] is None


def test_a_failure_after_calls_that_graphs_may_hold_says_so(scenario: Scenario) -> None:
    ended = scenario("guarded", ACTIVATE + ALPHA + CALL + FAIL + CALL)
    assert ended.out == "patched\nupstream\n"
    state, reason = ended.states()["alpha"]
    assert (state, reason) == ("failed", f"{REASON} (a graph captured before, if any, still replays the kernel)")


def test_a_method_bound_before_its_patch_was_taken_out_goes_upstreams_way(scenario: Scenario) -> None:
    bound = "from sglang.srt.alpha import Alpha\nforward = Alpha().forward\n"
    again = "activate()\nprint(forward(), results().alpha)\n"
    code = bound + "print(forward())\nr.uninstall('alpha')\nprint(forward(), results().alpha)\n" + again
    ended = scenario("guarded", ACTIVATE + ALPHA + code)
    assert (ended.code, ended.out) == (0, "patched\nupstream upstream\npatched patched\n"), ended.err


def test_a_strict_process_leaves(scenario: Scenario) -> None:
    ended = scenario("guarded", ACTIVATE + ALPHA + FAIL + CALL, AMD_SGLANG_STRICT="1")
    assert (ended.code, ended.out) == (3, "")
    assert f"alpha is failed and --strict forbids to serve without it: {REASON}" in ended.err
    assert ended.states()["alpha"] == ("failed", REASON)


FAMILY = """
import signal
signal.signal(signal.SIGQUIT, lambda *_: print('told', flush=True))
child = os.fork()
if child == 0:
    r.ready(ROLE, {})
    try:
        results()
    finally:
        os._exit(7 if sys.exc_info()[0] is SystemExit else 0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("role", "told"), [("scheduler", "told\n"), ("engine", "")])
def test_a_strict_scheduler_tells_its_parent_as_sglang_does(scenario: Scenario, role: str, told: str) -> None:
    code = ACTIVATE + ALPHA + FAIL + f"ROLE = {role!r}\n" + FAMILY
    ended = scenario("guarded", code, AMD_SGLANG_STRICT="1")
    assert ended.out == f"{told}7\n", ended.err


def test_a_strict_actor_of_ray_does_not_end_rays_daemon(scenario: Scenario) -> None:
    actor = "sys.modules['sglang.srt.ray.scheduler_actor'] = sys\nROLE = 'scheduler'\n"
    ended = scenario("guarded", ACTIVATE + ALPHA + FAIL + actor + FAMILY, AMD_SGLANG_STRICT="1")
    assert ended.out == "7\n", ended.err


def test_a_forked_child_counts_for_itself(scenario: Scenario) -> None:
    fork = "child = os.fork()\nif child == 0:\n    results(), results()\n    os._exit(0)\nos.waitpid(child, 0)\n"
    ended = scenario("guarded", ACTIVATE + ALPHA + "results()\n" + fork + "for _ in range(4): results()\n")
    assert ended.code == 0, ended.err
    counted = {str(row["role"]): patch_of(row)["counters"]["calls"] for row in status.read_runs(scenario.run_dir)}
    assert counted == {"starting": 5, "forked": 2}


def test_two_overlays_of_one_process_count_in_one_file(scenario: Scenario) -> None:
    ended = scenario("guarded", ACTIVATE + ALPHA + "results()\nactivate()\nresults()\n")
    assert ended.code == 0, ended.err
    (row,) = status.read_runs(scenario.run_dir)
    assert patch_of(row)["counters"]["calls"] == 1


def test_others_see_the_counts_while_it_runs_and_after_it_was_killed(scenario: Scenario) -> None:
    code = PRELUDE + ACTIVATE + ALPHA + "for line in sys.stdin:\n    results()\n    print('done', flush=True)\n"
    given = {"PATCHES": "guarded", "AMD_SGLANG_RUN_DIR": str(scenario.run_dir)}
    path = os.pathsep.join([str(scenario.tree), str(Path(guards.__file__).parent.parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_environ(PYTHONPATH=path, **given),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        for number in (1, 2, 3):
            process.stdin.write("call\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            (row,) = status.read_runs(scenario.run_dir)
            assert (row["alive"], patch_of(row)["counters"]["calls"]) == (True, number)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    (row,) = status.read_runs(scenario.run_dir)
    assert (row["alive"], patch_of(row)["counters"]["calls"]) == (False, 3)
    assert process.returncode == -signal.SIGKILL


FULL = """
def full(*_):
    raise OSError(28, 'No space left on device')
os.posix_fallocate = full
"""


def test_a_disk_without_room_for_counters_costs_the_counters(scenario: Scenario) -> None:
    ended = scenario("guarded", FULL + ACTIVATE + ALPHA + CALL + CALL)
    assert (ended.code, ended.out) == (0, "patched\npatched\n")
    assert ended.err.count("counts for itself alone") == 1 and "No space left on device" in ended.err
    (row,) = status.read_runs(scenario.run_dir)
    assert "counters" not in patch_of(row) and patch_of(row)["state"] == "applied"
    assert [path.suffix for path in scenario.run_dir.iterdir()] == [".json"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process without the overlay, as that of a kernel's own tests."""
    monkeypatch.setattr(guards, "_guards", {})
    monkeypatch.setattr(guards, "_keeper", guards._Nobody())
    yield


@pytest.mark.usefixtures("alone")
class TestWithoutTheOverlay:
    def test_one_guard_for_each_patch(self) -> None:
        one = guards.guard("one")
        assert one is guards.guard("one") and one is not guards.guard("two")
        assert one.on and one.shadow_runs == 0 and list(one.counts) == [0, 0, 0, 0]

    def test_a_failure_is_said_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        guard = guards.guard("one")
        for _ in range(3):
            guard.trip(ValueError("a\n  message   of\nlines"))
        assert capsys.readouterr().err == (
            "[amd-sglang] one: its kernel failed, upstream's path serves: ValueError: a message of lines\n"
        )
        assert not guard.on and guard.counts[FAILURES] == 3

    def test_a_compilers_pages_are_cut(self, capsys: pytest.CaptureFixture[str]) -> None:
        guards.guard("one").trip(ValueError("x" * 10_000))
        assert len(capsys.readouterr().err) < 600

    def test_shadow_runs_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AMD_SGLANG_SHADOW", "12")
        assert guards.guard("one").shadow_runs == 12
        monkeypatch.setenv("AMD_SGLANG_SHADOW", "-1")
        with pytest.raises(MalformedSwitchError, match="a whole number, 0 or more"):
            guards.guard("two")

    @pytest.mark.parametrize("capturing", [False, True])
    def test_a_shadow_run_is_due_unless_a_stream_captures(
        self, monkeypatch: pytest.MonkeyPatch, capturing: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        guard = guards.guard("one")
        assert not shadow.due(guard)
        guard.shadow_runs = 1
        assert shadow.due(guard) is not capturing


LIMITS = (Bound("first", 0.5, absolute), Bound("second", 0.1, absolute))


@pytest.mark.usefixtures("alone")
class TestShadow:
    def run(self, first: float, second: float) -> tuple[guards.Guard, tuple[torch.Tensor, ...]]:
        guard = guards.guard("one")
        guard.shadow_runs = 2
        result = shadow.run(
            guard,
            lambda: (torch.tensor([1 + first]), torch.tensor([2 + second])),
            lambda: (torch.tensor([1.0]), torch.tensor([2.0])),
            LIMITS,
            (torch.zeros(3, 4), None, 0.5),
        )
        return guard, result

    def test_within_every_bound_the_kernel_serves(self) -> None:
        guard, result = self.run(0.25, 0.0)
        assert result[0].item() == 1.25 and guard.on and guard.shadow_runs == 1
        assert guard.counts[CALLS] == guard.counts[SHADOWED] == 1
        assert guard.worst is not None and (guard.worst.bound.name, guard.worst.error) == ("first", 0.25)

    @pytest.mark.parametrize(("first", "second", "of"), [(0.75, 0.0, "first"), (0.25, 0.25, "second")])
    def test_beyond_a_bound_upstream_serves(
        self, first: float, second: float, of: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        guard, result = self.run(first, second)
        assert (result[0].item(), result[1].item(), guard.on) == (1, 2, False)
        said = capsys.readouterr().err
        assert f"BeyondBoundError: {of} is off by " in said and "for float32[3, 4]" in said
        assert said.count("\n") == 1

    def test_only_a_larger_error_is_remembered(self) -> None:
        self.run(0.25, 0.0)
        guard, _ = self.run(0.125, 0.0)
        assert guard.worst is not None and guard.worst.error == 0.25

    def test_nan_is_infinitely_wrong(self) -> None:
        guard, _ = self.run(float("nan"), 0.0)
        assert not guard.on and guard.worst is not None and guard.worst.error == float("inf")

    def test_an_error_of_upstreams_is_not_the_kernels(self) -> None:
        guard = guards.guard("one")

        def broken() -> torch.Tensor:
            raise RuntimeError("upstream's")

        with pytest.raises(RuntimeError, match="upstream's"):
            shadow.run(guard, lambda: torch.zeros(1), broken, LIMITS[:1], ())
        assert guard.on

    @pytest.mark.parametrize("result", [None, (torch.zeros(1),) * 2, torch.zeros(2)])
    def test_what_is_no_result_at_all(self, result: Any) -> None:
        guard = guards.guard("one")
        want = torch.zeros(1)
        assert shadow.run(guard, lambda: result, lambda: want, LIMITS[:1], ()) is want
        assert not guard.on


def test_an_infinite_error_is_a_number_in_the_status(scenario: Scenario) -> None:
    code = (
        "import math\nfrom overlay import guard\nfrom overlay.bound import Bound, Measured, ulps\n"
        "guard.guard('alpha').measure(Measured(Bound('y', 1, ulps), math.inf))\n"
    )
    assert scenario("guarded", ACTIVATE + ALPHA + code).code == 0
    (path,) = scenario.run_dir.glob("*.json")
    assert "Infinity" not in path.read_text()
    (patch,) = json.loads(path.read_text())["patches"]
    assert patch["worst_error"] > 1e300 and patch["bound"] == {"of": "y", "measure": "ulps", "limit": 1}
