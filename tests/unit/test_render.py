"""What stands on one line of its own, and what is folded into one with others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from overlay.counters import FIELDS
from overlay.model import State
from overlay.plan import Plan, make_plan
from overlay.platform import Platform
from overlay.render import summary
from overlay.render_status import status_table
from overlay.source import DirectoryTree
from tests.unit.engine_support import BETA_PATCH, PATCH, ROCM, registry, synthetic

LATER = replace(PATCH, id="later", versions=">=0.5.10,<0.5.12", variants=BETA_PATCH.variants)


def plan(root: Path, platform: Platform = ROCM) -> Plan:
    return make_plan(registry(PATCH, LATER), DirectoryTree(synthetic(root)), platform, {})


def test_a_launch_says_in_one_row_what_is_for_other_releases(tmp_path: Path) -> None:
    made = plan(tmp_path)
    brief = summary(made, brief=True).splitlines()
    assert [line.split()[:2] for line in brief[3:]] == [["alpha", "planned"], ["1", "more"]]
    assert "later (`amd-sglang patches plan` says why)" in brief[4]
    assert "later  unsupported-version  for sglang >=0.5.10,<0.5.12: this is 0.5.9" in summary(made)


def test_a_launch_says_in_one_row_that_this_is_the_wrong_machine(tmp_path: Path) -> None:
    brief = summary(plan(tmp_path, Platform("cuda")), brief=True).splitlines()
    assert len(brief) == 4 and "2 more  unsupported-platform  alpha, later (" in brief[3]


def row(*states: State) -> dict[str, object]:
    patches = [{"id": f"p{at}", "state": state.value, "reason": f"because {at}"} for at, state in enumerate(states)]
    return {
        "run": "r", "pid": 7, "role": "scheduler", "ranks": {"tp": 1}, "alive": True, "ready": True, "overlay": "1",
        "sglang": {"version": "0.5.9"}, "platform": ROCM.to_json(), "plan": "0", "patches": patches,
    }  # fmt: skip


def test_a_status_shows_what_was_done_or_failed_and_counts_the_rest() -> None:
    done = (State.APPLIED, State.CONFLICT, State.FAILED, State.ROLLED_BACK, State.SOURCE_MISMATCH)
    lines = status_table([row(*done, State.PLANNED, State.CONTAINED, State.CONTAINED)]).splitlines()[2:]
    assert [line.split("because")[0].split()[-2:] for line in lines[:-1]] == [
        [f"p{at}", state.value] for at, state in enumerate(done)
    ]
    assert lines[0].startswith("7    scheduler tp1  ready  p0")
    assert lines[-1].split() == ["3", "others", "-", "1", "planned,", "2", "contained", "(--json", "says", "why)"]


@pytest.mark.parametrize(
    ("counts", "worst", "shown"),
    [
        ((36, 1, 0, 4), 0.5, "(36 calls, 1 fallback, 4 shadowed, worst error 0.5)"),
        ((1, 0, 0, 0), None, "(1 call)"),
        ((0, 0, 0, 0), None, ""),
    ],
)
def test_a_status_shows_what_a_guard_has_counted(counts: tuple[int, ...], worst: float | None, shown: str) -> None:
    process = row(State.APPLIED)
    counters = dict(zip(FIELDS, counts, strict=True))
    process["patches"] = [{**process["patches"][0], "counters": counters, "worst_error": worst}]  # type: ignore[index]
    line = status_table([process]).split("because 0", 1)[1]
    assert " ".join(line.split()) == shown


def test_a_status_of_patches_that_are_all_in_force_counts_nothing() -> None:
    assert "others" not in status_table([row(State.APPLIED)])
