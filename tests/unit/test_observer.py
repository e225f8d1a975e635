"""What an observer sees of a slot, in sglang and beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlay import fingerprint
from overlay.model import Slot
from overlay.observer import Observer
from overlay.source import installed_tree
from tests.unit.engine_support import ALPHA, ALPHA_TEXT, digest_of, synthetic, write_tree

COMPANION = Slot("companion_of_sglang.ops", "kernel")
TEXT = "def kernel():\n    return 1\n"


def site(root: Path, text: str | bytes = TEXT) -> list[str]:
    """A path whose sglang has a companion elsewhere."""
    companion = {"companion_of_sglang/__init__.py": "", "companion_of_sglang/ops.py": text}
    return [str(synthetic(root / "site")), str(write_tree(root / "src", companion))]


def test_a_slot_beside_sglang(tmp_path: Path) -> None:
    observer = Observer(installed_tree(site(tmp_path)))
    assert observer.observe(COMPANION) == digest_of(TEXT, "kernel")
    assert observer.observe(Slot("companion_of_sglang.missing", "kernel")) == fingerprint.NO_MODULE
    assert observer.observe(Slot("no_such_companion", "kernel")) == fingerprint.NO_MODULE


@pytest.mark.parametrize("text", ["def kernel(:\n", b"\x00"])
def test_a_companion_that_cannot_be_read(tmp_path: Path, text: str | bytes) -> None:
    assert Observer(installed_tree(site(tmp_path, text))).observe(COMPANION) == fingerprint.UNREADABLE


def test_in_a_simulation_only_sglang_is_real(tmp_path: Path) -> None:
    observer = Observer(installed_tree(site(tmp_path)), simulated=True)
    assert observer.observe(COMPANION) == fingerprint.NO_MODULE
    assert observer.observe(ALPHA) == digest_of(ALPHA_TEXT, "Alpha.forward")
