"""`amd-sglang patches fingerprint`: the digests that the images of a patch are written from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from overlay import commands
from overlay.errors import OverlayError
from overlay.model import ABSENT, Slot
from overlay.source import DirectoryTree
from overlay.survey import parse_slot, survey
from patches import gemma_rmsnorm
from tests.unit.engine_support import ALPHA, ALPHA_TEXT, BETA, RELEASES, digest_of, synthetic


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(commands.main, ("patches", "fingerprint", *arguments))


@pytest.mark.parametrize("text", ["sglang.srt.a", "sglang:", ":A", "a b:c", "a:b:c", "a/b.py:c", "a.:c", "a:b.", "a:1"])
def test_what_is_no_slot_is_answered_with_how_one_is_written(text: str) -> None:
    with pytest.raises(OverlayError, match=r"is no slot: write package\.module:name"):
        parse_slot(text)
    refused = invoke(text)
    assert (refused.exit_code, refused.stderr.startswith(f"Error: {text!r} is no slot")) == (2, True)


def test_a_slot_is_read_as_it_is_written() -> None:
    assert parse_slot(str(ALPHA)) == ALPHA
    assert parse_slot("sglang:f") == Slot("sglang", "f")


def test_sglangs_with_one_source_share_a_line(tmp_path: Path) -> None:
    edited = ALPHA_TEXT.replace("upstream", "edited")
    versions = {"0.5.7": ALPHA_TEXT, "0.5.8": edited, "0.5.9": ALPHA_TEXT}
    trees = [DirectoryTree(synthetic(tmp_path / v, v, alpha=text)) for v, text in versions.items()]
    found = survey((BETA, ALPHA), trees)
    assert [(one.slot, one.sglangs) for one in found] == [
        (BETA, ("0.5.7", "0.5.8", "0.5.9")),
        (ALPHA, ("0.5.7", "0.5.9")),
        (ALPHA, ("0.5.8",)),
    ]
    assert [one.observed for one in found[1:]] == [digest_of(text, "Alpha.forward") for text in (ALPHA_TEXT, edited)]


@pytest.mark.parametrize(
    ("slot", "observed", "problem"),
    [
        (str(ALPHA), digest_of(ALPHA_TEXT, "Alpha.forward"), None),
        ("sglang.srt.alpha:Alpha.added", ABSENT, None),
        ("sglang.srt.ghost:f", "no-module", "there is no such module"),
        ("sglang.srt.alpha:Ghost.f", "no-owner", "there is no such class"),
        ("sglang.srt.twice:f", "ambiguous", "it is bound more than once"),
        ("sglang.srt.broken:f", "unreadable", "the module cannot be read as Python"),
    ],
)
def test_what_no_image_can_be_made_of_is_said(tmp_path: Path, slot: str, observed: str, problem: str | None) -> None:
    twice = "def f(): pass\nf = f\n"
    tree = str(synthetic(tmp_path, "0.5.9", twice=twice, broken="def f(:\n"))
    asked = invoke(slot, "--sglang", tree, "--json")
    (one,) = json.loads(asked.stdout)["slots"]
    assert (one["slot"], one["observed"], one["sglangs"]) == (slot, observed, ["0.5.9"])
    assert (one["problem"] or "").startswith(problem or "") and bool(one["problem"]) is bool(problem)
    assert asked.exit_code == (1 if problem else 0)
    shown = invoke(slot, "--sglang", tree)
    assert (shown.exit_code, problem is None or problem in shown.stdout) == (asked.exit_code, True)
    assert observed in shown.stdout


def test_the_images_of_our_own_patches_are_what_the_command_gives() -> None:
    images = {image.slot: image.digests for image in gemma_rmsnorm.PATCH.variants[0].images}
    release = next(iter(RELEASES))
    asked = invoke(*map(str, images), "--sglang", str(RELEASES[release]), "--json")
    known = {digest for v in gemma_rmsnorm.PATCH.variants for i in v.images if i.slot in images for digest in i.digests}
    assert {one["observed"] for one in json.loads(asked.stdout)["slots"]} <= known
