"""What the slots of a patch hold in several sglangs: the digests that its images are written from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from overlay import fingerprint
from overlay.errors import OverlayError
from overlay.model import ABSENT, Slot
from overlay.observer import Observer
from overlay.render import table
from overlay.source import SourceTree
from overlay.version import read_version

SCHEMA = 1
_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
#: Why an observation can be in no image.
_USELESS = {
    fingerprint.NO_MODULE: "there is no such module",
    fingerprint.NO_OWNER: "there is no such class",
    fingerprint.AMBIGUOUS: "it is bound more than once, and the text does not tell which binding is live",
    fingerprint.UNREADABLE: "the module cannot be read as Python",
}


@dataclass(frozen=True)
class Observation:
    """What one slot holds, and the sglangs in which it holds it. `problem` says why no image can be made of that."""

    slot: Slot
    observed: str
    sglangs: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        return _USELESS.get(self.observed)

    @property
    def note(self) -> str:
        return self.problem or ("overlay.model.ABSENT: not defined there itself" if self.observed == ABSENT else "")

    def to_json(self) -> dict[str, object]:
        return {
            "slot": str(self.slot),
            "observed": self.observed,
            "sglangs": list(self.sglangs),
            "problem": self.problem,
        }


def parse_slot(text: str) -> Slot:
    """A slot as it is written, `package.module:Class.attribute`. Raises OverlayError for anything else."""
    module, _, qualname = text.partition(":")
    if not re.fullmatch(_NAME, module) or not re.fullmatch(_NAME, qualname):
        raise OverlayError(f"{text!r} is no slot: write package.module:name or package.module:Class.attribute.")
    return Slot(module, qualname)


def survey(slots: Sequence[Slot], trees: Iterable[SourceTree]) -> tuple[Observation, ...]:
    """Every digest of every slot once, in the order of the slots and of the trees."""
    seen: dict[Slot, dict[str, list[str]]] = {slot: {} for slot in slots}
    for tree in trees:
        observer, name = Observer(tree), read_version(tree).text or tree.path
        for slot, sightings in seen.items():
            sightings.setdefault(observer.observe(slot), []).append(name)
    return tuple(
        Observation(slot, observed, tuple(names)) for slot, held in seen.items() for observed, names in held.items()
    )


def tabulate(found: Iterable[Observation]) -> str:
    """One line per digest of a slot, with the sglangs that have it."""
    rows = [(str(one.slot), one.observed, " ".join(one.sglangs) + (one.note and f" ({one.note})")) for one in found]
    return table(("SLOT", "DIGEST", "SGLANG"), rows)
