"""One letter for what a patch meets on a release, over all configurations: for the picture and the table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from overlay.model import BROKEN, Patch, State


class Mark(Enum):
    """A letter and what it says; the letter alone tells the marks apart, colour only helps."""

    PLANNED = ("P", "applied in every configuration")
    PARTLY = ("p", "applied in some configurations")
    CONTAINED = ("C", "contained in the release, or not needed")
    ELSEWHERE = ("a", "decided by the aiter beside it, not by the release")
    OUTSIDE = ("-", "not for this release")
    UNKNOWN = ("!", "source unknown: never applied")

    @property
    def letter(self) -> str:
        return self.value[0]

    @property
    def meaning(self) -> str:
        return self.value[1]


def mark(patch: Patch, outcomes: Iterable[str]) -> Mark:
    """The mark for the outcomes of one patch on one release, such as `planned (unfused)`."""
    states = {State(outcome.partition(" ")[0]) for outcome in outcomes}
    if State.PLANNED in states:
        return Mark.PLANNED if states == {State.PLANNED} else Mark.PARTLY
    if states & BROKEN:
        return Mark.UNKNOWN
    if State.CONTAINED not in states:
        return Mark.OUTSIDE
    return Mark.CONTAINED if is_about_sglang(patch) else Mark.ELSEWHERE


def is_about_sglang(patch: Patch) -> bool:
    """Whether the release decides about a patch, and not only a package beside it, such as aiter."""
    images = [image for variant in patch.variants for image in variant.images]
    return any(image.slot.module.partition(".")[0] == "sglang" for image in images)
