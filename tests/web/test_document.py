"""What the processes of a run add up to: for a reader, and for Prometheus."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from overlay.model import BROKEN, State
from overlay.web.document import ranks, served, troubles
from overlay.web.metrics import Families
from tests.web.app import document, patch


def row(role: str = "scheduler", *patches: dict[str, object], **more: object) -> dict[str, Any]:
    return {"run": "r", "alive": True, "file": f"/secret/{role}.json", **document(role, *patches, **more)}


def samples(*rows: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Metric name, patch, role and rank -> value, through the text that a scraper reads."""
    registry = CollectorRegistry()
    registry.register(Families(rows))
    return {
        (one.name, *(one.labels[key] for key in ("patch", "role", "rank") if key in one.labels)): one.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for one in family.samples
    }


def test_all_is_well_with_processes_that_live_and_states_that_were_decided() -> None:
    decided = [patch(f"p{at}", state.value) for at, state in enumerate(set(State) - BROKEN)]
    made = served([row("scheduler", *decided), row("forked", ready=False)], host="h", nodes=1)
    assert (made["healthy"], made["reasons"], made["note"]) == (True, [], None)


@pytest.mark.parametrize("state", sorted(BROKEN))
def test_a_broken_patch_is_a_reason_that_names_the_process(state: State) -> None:
    found = troubles([row("scheduler", patch("p", state.value, "why"), ranks={"dp": 0, "tp": 1}, pid=7)])
    assert found == [f"p is {state.value} in scheduler dp0 tp1 (pid 7): why"]


def test_a_process_that_served_and_ended_is_a_reason_whatever_its_patches_were() -> None:
    gone = row("scheduler", patch("p"), patch("q", "failed"), ranks={"tp": 1}, pid=7, alive=False)
    assert troubles([gone, row("scheduler", ranks={"tp": 0})]) == ["scheduler tp1 (pid 7) has ended"]


def test_a_helper_that_never_served_may_end() -> None:
    assert troubles([row("forked", patch("p", "failed"), ready=False, alive=False)]) == []


@pytest.mark.parametrize(
    ("successor", "well"),
    [
        ({"started": 20}, True),
        ({"started": 5}, False),  # it was there before
        ({"started": 20, "alive": False}, False),
        ({"started": 20, "ready": False}, False),
        ({"started": 20, "ranks": {"tp": 0}}, False),
    ],
)
def test_a_worker_that_was_started_again_is_no_loss(successor: dict[str, object], well: bool) -> None:
    gone = row("http-server", patch("p"), started=10, alive=False)
    rows = [gone, row("http-server", patch("p"), **successor)]
    assert (troubles(rows) == []) is well
    if well:
        assert samples(*rows)["amd_sglang_patch_state", "p", "http-server", ""] == 1


def test_a_file_without_sense_is_a_reason_and_its_folder_stays_here() -> None:
    broken = {"run": "r", "file": "/secret/7.json", "error": "unreadable", "alive": False, "patches": []}
    made = served([broken, row()], host="h", nodes=None)
    assert made["reasons"] == ["7.json: unreadable"]
    assert "/secret" not in json.dumps(made)


def test_several_nodes_are_said_and_not_pretended() -> None:
    assert "sglang runs on 4 nodes, and these are the processes of h alone" in str(
        served([row()], host="h", nodes=4)["note"]
    )


def test_every_number_can_be_said_in_json() -> None:
    rows = [row("scheduler", patch("p", worst_error=worst)) for worst in (math.inf, math.nan)]
    assert json.dumps(served(rows, host="h", nodes=1), allow_nan=False).count("1.7976931348623157e+308") == 2


def test_ranks_are_said_in_the_order_of_the_status() -> None:
    assert ranks(row(ranks={"dp": 1, "tp": 10})) == "dp1 tp10"


def test_the_gauge_has_three_values() -> None:
    found = samples(row("scheduler", *(patch(state.value, state.value) for state in State)))
    values = {name: found["amd_sglang_patch_state", name, "scheduler", ""] for name in (s.value for s in State)}
    assert {name for name, value in values.items() if value == 1} == {"applied"}
    assert {name for name, value in values.items() if value == -1} == {state.value for state in BROKEN}
    assert found["amd_sglang_healthy",] == 0


def test_a_process_that_ended_has_nothing_in_force() -> None:
    found = samples(row("scheduler", patch("p"), alive=False))
    assert (found["amd_sglang_patch_state", "p", "scheduler", ""], found["amd_sglang_healthy",]) == (-1, 0)


def test_processes_of_one_role_and_rank_are_one_series() -> None:
    counts = {"calls": 5, "fallbacks": 2, "failures": 1, "shadowed": 0}
    well, ill = (
        row("http-server", patch("p", state, counters=counts), pid=pid)
        for state, pid in (("applied", 1), ("failed", 2))
    )
    found = samples(well, ill, row("forked", patch("p", "failed"), ready=False, alive=False))
    assert found["amd_sglang_patch_state", "p", "http-server", ""] == -1
    totals = [found[f"amd_sglang_patch_{kind}_total", "p", "http-server", ""] for kind in counts]
    assert totals == [10, 4, 2, 0]
    assert not any("forked" in key for key in found)


def test_a_patch_without_a_guard_has_no_counters() -> None:
    assert {name for name, *_ in samples(row("scheduler", patch("p")))} == {
        "amd_sglang_healthy",
        "amd_sglang_patch_state",
    }
