"""The benchmarks' harness: who is timed, what is said of the others, and how results are shown and written."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping

import pytest

from benchmarks import document, plot, table
from benchmarks.case import AbsentError, Case, Group, Maker, Prepared
from benchmarks.measure import floor, measure_case, measure_group, worst_errors
from benchmarks.results import CaseResult, GroupResult, Machine, Report, Result, Timing
from benchmarks.timing import calls_of_a_graph, summary

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = Machine("A GPU", "sm_90", 132, 1 << 20, 1 << 30, {"torch": "2"}, 4e12, 8e14)


def case_of(makers: Mapping[str, Maker], label: str = "8, 1") -> Case:
    return Case(label, {"tokens": 1}, bytes_moved=4_000_000, operations=0, makers=lambda: makers)


def raising(error: Exception) -> Maker:
    def maker() -> Prepared:
        raise error

    return maker


def prepared(error: float = 0.0, call: Callable[[], object] = lambda: None) -> Maker:
    return lambda: Prepared(call, {"largest error": error})


def timer(call: Callable[[], object]) -> Timing:
    call()
    return Timing(2.0, 1.5, 2.5)


def copy(bytes_moved: int) -> Timing:
    return Timing(bytes_moved / 4e6, 0.0, 0.0)


def result(name: str, microseconds: float, error: float = 0.0) -> Result:
    return Result(name, Timing(microseconds, microseconds * 0.9, microseconds * 1.1), {"largest error": error})


def case_result(label: str, *results: Result, absent: Mapping[str, str] | None = None) -> CaseResult:
    return CaseResult(label, {"tokens": 1}, 4_000_000, 0, Timing(1.0, 1.0, 1.0), 0.5, results, absent or {})


@pytest.fixture
def report() -> Report:
    first = case_result("8, 1", result("ours", 2.0, 0.25), result("unfused", 8.0, 0.5), absent={"peer": "not here"})
    second = case_result("8, 9", result("ours", 4.0, 0.75), result("peer", 2.0), result("unfused", 4.0))
    alone = case_result("1", result("ours", 1.0))
    groups = (
        GroupResult("suite", "A title & more", "N, M", (first, second)),
        GroupResult("suite", "Nobody else", "N", (alone,)),
    )
    return Report("2026-01-01T00:00:00+00:00", "warm", MACHINE, groups)


def test_everybody_who_runs_is_timed_and_the_others_have_a_reason() -> None:
    called: list[str] = []
    makers = {
        "ours": prepared(call=lambda: called.append("ours")),
        "missing": raising(AbsentError("there is no wheel of it")),
        "broken": raising(RuntimeError("bad launch\nand a long story")),
        "unwanted": prepared(call=lambda: called.append("unwanted")),
        "other": prepared(0.5, lambda: called.append("other")),
    }
    got = measure_case(case_of(makers), timer, copy, MACHINE, without=["unwanted", "ours"])
    assert called == ["ours", "other"]
    assert [one.implementation for one in got.results] == ["ours", "other"]
    assert got.results[1].errors == {"largest error": 0.5}
    assert got.absent == {
        "missing": "there is no wheel of it",
        "broken": "failed: RuntimeError: bad launch",
        "unwanted": "left out by --without",
    }
    assert got.copy.median == 1.0


@pytest.mark.parametrize("error", [RuntimeError("wrong"), AbsentError("unsupported")])
def test_a_failure_of_ours_is_never_a_gap_in_the_table(error: Exception) -> None:
    with pytest.raises(type(error)):
        measure_case(case_of({"ours": raising(error), "other": prepared()}), timer, copy, MACHINE)


def test_a_peer_that_fails_only_when_it_is_timed_is_absent_too() -> None:
    def call() -> None:
        raise RuntimeError("no capture")

    got = measure_case(case_of({"ours": prepared(), "peer": prepared(call=call)}), timer, copy, MACHINE)
    assert got.absent == {"peer": "failed: RuntimeError: no capture"}


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    assert floor(4_000_000, 0, MACHINE) == pytest.approx(1.0)
    assert floor(4_000_000, 8 * 10**9, MACHINE) == pytest.approx(10.0)


def test_groups_keep_their_names_and_worst_errors_are_over_all_sizes(report: Report) -> None:
    group = Group("suite", "title", "N", (case_of({"ours": prepared(0.5)}), case_of({"ours": prepared(0.25)})))
    measured = measure_group(group, timer, copy, MACHINE)
    assert (measured.suite, measured.title, measured.axes) == ("suite", "title", "N")
    assert worst_errors(measured) == {"ours": {"largest error": 0.5}}
    assert worst_errors(report.groups[0])["unfused"] == {"largest error": 0.5}


def test_a_table_shows_times_rates_errors_and_who_is_missing_where(report: Report) -> None:
    assert table.group_lines(report.groups[0]) == [
        "## A title & more",
        "",
        "| N, M | ours | unfused | peer | copy | floor | copy / ours | floor / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 8, 1 | 2.00 | 8.00 | - | 1.00 | 0.50 | 50% | 25% |",
        "| 8, 9 | 4.00 | 4.00 | 2.00 | 1.00 | 0.50 | 25% | 12% |",
        "",
        "microseconds, median of graph replays; from the 10th to the 90th percentile at most 20.0% (ours at 8, 1)",
        "",
        "| worst of all sizes | largest error |",
        "| --- | --- |",
        "| ours | 7.50e-01 |",
        "| unfused | 5.00e-01 |",
        "| peer | 0.00e+00 |",
        "",
        "- not timed at 8, 1: peer: not here",
    ]


def test_who_is_missing_everywhere_is_said_once() -> None:
    cases = tuple(case_result(label, result("ours", 1.0), absent={"peer": "not here"}) for label in "ab")
    assert table.group_lines(GroupResult("s", "t", "N", cases))[-1] == "- not timed: peer: not here"


def test_the_headline_names_the_gpu_the_versions_and_its_rates(report: Report) -> None:
    line = table.headline(report)
    assert line == "A GPU (sm_90), torch 2; caches warm; copy of 1 GiB 4.00 TB/s, bf16 product 800 TFLOP/s"


def test_the_document_has_every_measurement_with_its_ratios(report: Report) -> None:
    read = json.loads(document.text(report))
    assert read["schema"] == document.SCHEMA and read["date"] == report.date and read["cache"] == "warm"
    assert read["machine"]["gpu"] == "A GPU" and read["machine"]["versions"] == {"torch": "2"}
    first, second = read["groups"][0]["cases"]
    assert first["absent"] == {"peer": "not here"}
    assert first["results"][1] == {
        "implementation": "unfused",
        "timing": {"median": 8.0, "low": 7.2, "high": 8.8},
        "errors": {"largest error": 0.5},
        "copy_over_time": 0.125,
        "floor_over_time": 0.0625,
    }
    assert [one["implementation"] for one in second["results"]] == ["ours", "peer", "unfused"]


def titles(drawn: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in drawn.iter(f"{SVG}title")]


def test_the_picture_is_well_formed_and_has_a_mark_for_every_peer(report: Report) -> None:
    drawn = ElementTree.fromstring(plot.picture(report))
    assert drawn.tag == f"{SVG}svg"
    # Two marks of the legend, then one a size.
    assert titles(drawn) == [
        "unfused",
        "peer",
        "unfused at 8, 1: 8.00 us, ours 2.00 us, 4.00x",
        "unfused at 8, 9: 4.00 us, ours 4.00 us, 1.00x",
        "peer at 8, 9: 2.00 us, ours 4.00 us, 0.50x",
    ]
    shown = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "A title & more" in shown and "Nobody else" not in shown


def test_slower_is_higher_in_the_picture_and_even_is_on_the_line(report: Report) -> None:
    drawn = ElementTree.fromstring(plot.picture(report))
    unfused = next(line for line in drawn.iter(f"{SVG}polyline") if line.get("class") == "line s0")
    slower, even = (float(point.split(",")[1]) for point in (unfused.get("points") or "").split())
    (line,) = [one for one in drawn.iter(f"{SVG}line") if one.get("class") == "ours"]
    assert slower < even == pytest.approx(float(line.get("y1") or 0))


def test_a_long_legend_takes_more_rows_and_stays_on_the_page() -> None:
    names = [f"implementation number {number}" for number in range(9)]
    case = case_result("1", result("ours", 1.0), *(result(name, 2.0) for name in names))
    picture = plot.picture(Report("", "warm", MACHINE, (GroupResult("s", "t", "N", (case,)),)))
    drawn = ElementTree.fromstring(picture)
    legend = [text for text in drawn.iter(f"{SVG}text") if text.text in names]
    assert len({text.get("y") for text in legend}) > 1
    assert all(float(text.get("x") or 0) + 7 * len(text.text or "") < 920 for text in legend)


def test_a_graph_holds_as_many_calls_as_make_its_launch_small() -> None:
    assert calls_of_a_graph(15.0) == 100
    assert calls_of_a_graph(1e6) == 1
    assert calls_of_a_graph(0.0) == calls_of_a_graph(1e-9) > 100


def test_a_timing_is_a_median_with_deciles() -> None:
    timing = summary([float(sample) for sample in (3, 1, 2, 5, 4, 6, 9, 8, 7, 10, 11)])
    assert (timing.median, timing.low, timing.high) == (6.0, 2.0, 10.0)
    assert timing.spread == pytest.approx(8 / 6)
