"""What is said of the results: the table, the JSON, the closing words, the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from overlay.denylist import Entry
from overlay.errors import OverlayError
from overlay.verify import plot, report
from overlay.verify.outcome import Outcome, Result
from tests.unit.engine_support import PATCH

RIGHT = Outcome("1 x 96", "triton", share=0.5, graph="replayed", microseconds=2.0, replaced_microseconds=9.0)
SLOW = replace(RIGHT, label="3 x 96", microseconds=12.0)
UNTIMED = Outcome("4 x 96", "triton", share=0.0, graph="not captured: no graphs", timing="not timed: interpreter")
WRONG = Outcome("5 x 96", "triton", failure="y is off by 3 (ulps), bound 1")
LEFT = Outcome("6 x 96", "aiter", taken=False)
DEVICE: Any = SimpleNamespace(name="AMD Instinct MI300X", arch="gfx942", interpreted=False, versions={"torch": "2.9"})
DENIED = Entry("alpha", "gfx942", False, "wrong", "2026-11-22T21:00:00+00:00", {})


@pytest.mark.parametrize(
    ("result", "state", "said"),
    [
        (Result(PATCH, (RIGHT, SLOW)), "passed", "all 2 cases within their bounds"),
        (Result(PATCH, (RIGHT, WRONG, LEFT)), "failed", "1 of 2 cases failed"),
        (Result(PATCH, (WRONG,), "and then the process was lost"), "failed", "1 of 1 cases failed"),
        (Result(PATCH, (), "ImportError: no aiter"), "not run", "ImportError: no aiter"),
        (Result(PATCH), "no case", "does not reach the kernel"),
        (Result(PATCH, (LEFT,)), "no case", "hands none of these shapes to its kernel"),
    ],
)
def test_a_patch_in_one_sentence(result: Result, state: str, said: str) -> None:
    assert result.state == state
    first = report.block(result).splitlines()[0]
    assert first.startswith(f"alpha: {state}: ")
    assert said in first


def test_every_case_has_a_row_with_its_times_and_a_bar() -> None:
    rows = report.block(Result(PATCH, (RIGHT, SLOW, UNTIMED, WRONG, LEFT))).splitlines()[2:]
    assert "50%" in rows[0] and "replayed" in rows[0] and "2.00 us" in rows[0] and "9.00 us" in rows[0]
    assert rows[0].endswith("x4.50 ████|██████████████")
    assert rows[1].endswith("x0.75 ███░|")
    assert "not captured: no graphs" in rows[2] and "not timed: interpreter" in rows[2] and rows[2].endswith("ok")
    assert rows[3].endswith("FAILED: y is off by 3 (ulps), bound 1")
    assert "not taken" in rows[4]


def test_a_bar_ends_somewhere() -> None:
    fast = replace(RIGHT, replaced_microseconds=2e6)
    assert report.block(Result(PATCH, (fast,))).count("█") == 40


def test_the_stable_form() -> None:
    document: dict[str, Any] = report.to_json((Result(PATCH, (RIGHT, WRONG)),), "a model", DEVICE, (DENIED,))
    assert json.loads(json.dumps(document)) == document
    (patch,) = document["patches"]
    assert (patch["id"], patch["state"]) == ("alpha", "failed")
    assert [case["ratio"] for case in patch["cases"]] == [4.5, None]
    assert document["denied"] == ["alpha"]


def test_the_closing_words() -> None:
    path = Path("/state/denylist.json")
    passed, failed = Result(PATCH, (RIGHT, SLOW)), Result(PATCH, (WRONG,))
    assert list(report.closing([failed], [DENIED], [DENIED], path)) == [
        f"alpha is denied on gfx942 from now on: no launch here applies it. Written to {path}."
    ]
    still, slower = report.closing([passed], [], [DENIED], path)
    assert "has passed, and is still denied since 2026-11-22: `amd-sglang verify --clear alpha`" in still
    assert slower == "slower than what they replace, though right: 3 x 96."
    assert list(report.closing([Result(PATCH, (RIGHT,))], [], [], path)) == []


def test_the_picture_has_a_bar_for_every_case_that_was_timed(tmp_path: Path) -> None:
    results = [Result(replace(PATCH, title="<x>"), (RIGHT, SLOW, UNTIMED, WRONG))]
    bars = plot.bars_of(results)
    assert bars == [plot.Bar("alpha: 1 x 96", 4.5), plot.Bar("alpha: 3 x 96", 0.75)]
    path = tmp_path / "out.svg"
    plot.save(path, "a < b", bars)
    drawing = ElementTree.parse(path)
    name = "{http://www.w3.org/2000/svg}"
    widths = [float(r.attrib["width"]) for r in drawing.iter(f"{name}rect") if r.attrib["width"] != "100%"]
    assert widths[0] == pytest.approx(6 * widths[1], rel=0.01)
    texts = [text.text for text in drawing.iter(f"{name}text")]
    assert texts == ["a < b", "alpha: 1 x 96", "x4.50", "alpha: 3 x 96", "x0.75"]
    plot.save(path, "nothing was timed", [])


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"--plot .* cannot be written: .*Name another file"):
        plot.save(tmp_path / "absent" / "out.svg", "", [])
