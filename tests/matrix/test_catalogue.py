"""The generated documents are the ones that are committed, and can be read by whoever looks at them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from demo.layout import ROOT
from matrix import behaviour, expected
from matrix.catalogue import documents
from matrix.marks import Mark, mark
from matrix.picture import picture
from overlay.model import Image, Slot
from overlay.registry import builtin
from tests.unit.engine_support import PATCH, variant

_SVG = "{http://www.w3.org/2000/svg}"


def generated() -> dict[str, str]:
    registry, expectation = builtin(), expected.read()
    return documents(registry, expectation, behaviour.read(registry, expectation))


@pytest.mark.parametrize("name", ["patches.md", "matrix.svg"])
def test_the_committed_documents_are_the_generated_ones(name: str) -> None:
    wanted = generated()[name]
    assert (ROOT / "docs" / name).read_text() == wanted, "stale: run `make catalogue`"


@pytest.mark.parametrize(
    ("outcomes", "expected_mark"),
    [
        (["planned (a)", "planned (b)"], Mark.PLANNED),
        (["planned (a)", "contained (a)"], Mark.PARTLY),
        (["planned (a)", "source-mismatch"], Mark.PARTLY),
        (["contained (a)", "disabled"], Mark.CONTAINED),
        (["unsupported-version"], Mark.OUTSIDE),
        (["disabled"], Mark.OUTSIDE),
        (["source-mismatch", "contained (a)"], Mark.UNKNOWN),
    ],
)
def test_one_letter_for_all_configurations(outcomes: list[str], expected_mark: Mark) -> None:
    assert mark(PATCH, outcomes) is expected_mark


def test_a_patch_of_aiter_is_not_said_to_be_contained_in_sglang() -> None:
    aiter = replace(PATCH, variants=(variant(Image.of(Slot("aiter.ops.gemm", "f"), "0" * 16)),))
    assert mark(aiter, ["contained (no-aiter)"]) is Mark.ELSEWHERE
    assert mark(aiter, ["unsupported-version"]) is Mark.OUTSIDE


def test_the_picture_says_all_of_it_without_colour() -> None:
    rows = {f"<patch & {one.name}>": {"0.5.9": one, "0.5.10": Mark.OUTSIDE} for one in Mark}
    drawn = ElementTree.fromstring(picture(rows, "a & b"))
    texts = ["".join(text.itertext()) for text in drawn.iter(f"{_SVG}text")]
    assert [name for name in rows if name not in texts] == []
    assert [one.meaning for one in Mark if one.meaning not in texts] == []
    letters = [one.letter for one in Mark]
    assert len(set(letters)) == len(letters)
    cells = [text for text in texts if text in letters]
    assert sorted(cells) == sorted([*letters, *letters, *[Mark.OUTSIDE.letter] * len(rows)])
    titles = ["".join(title.itertext()) for title in drawn.iter(f"{_SVG}title")]
    assert f"<patch & PLANNED> on 0.5.9: {Mark.PLANNED.meaning}" in titles


def test_the_picture_stays_inside_its_frame() -> None:
    drawn = ElementTree.fromstring(generated()["matrix.svg"])
    width, height = (float(drawn.attrib[name]) for name in ("width", "height"))
    for box in drawn.iter(f"{_SVG}rect"):
        if box.attrib["class"] != "page":
            x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height


def test_every_mark_has_its_colours_on_a_light_and_a_dark_page() -> None:
    style = picture({"a": {"1": Mark.PLANNED}}, "t").partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for one in Mark:
        for selector in (f".{one.name.lower()} {{", f"text.{one.name.lower()}"):
            assert selector in light
            assert selector in dark
