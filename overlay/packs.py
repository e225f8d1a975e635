"""Third-party packs: patches that another distribution offers, found by entry point and loaded by name only.

A pack is code of somebody else's that runs in every process of the server. So nothing of a pack is imported before
its name was given, and whatever it does wrong ends as a `PackError` that names it: it is never used in part.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from overlay.errors import PackError, UnknownPackError
from overlay.gates import Gate
from overlay.misfit import misfit
from overlay.model import Facts, Need, Pack, Patch
from overlay.say import say

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "amd_sglang.patches"
#: What a pack may not import while it is loaded: in the launcher it would cost seconds, and in the server sglang's
#: modules would execute before anything waits for them.
_TOO_EARLY = ("sglang", "torch")
#: Seconds after which a pack that is still being imported is named: it may never end.
PATIENCE_S = 5.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Offer:
    """A pack that is installed, whether or not anybody named it. Nothing of it has been imported."""

    pack: Pack
    entry: EntryPoint

    def __str__(self) -> str:
        return f"{self.pack.name!r} of {self.pack.distribution} {self.pack.version} ({self.entry.value})"


def installed() -> tuple[Offer, ...]:
    """Every pack that the distributions on the path offer, in the order of the path."""
    from importlib.metadata import entry_points  # a launch without packs does not need it

    return tuple(_offer(entry) for entry in entry_points(group=GROUP))


def load(names: Iterable[str]) -> Iterator[tuple[Offer, tuple[Patch, ...]]]:
    """The patches of the packs of these names, in order, each marked with its pack.

    Raises UnknownPackError for a name nobody offers, and PackError for a pack that two distributions offer, that fails
    while it is imported (also by SystemExit), that imports sglang or torch then, or that is no sequence of patches.
    """
    wanted = tuple(names)
    offers = installed() if wanted else ()
    for name in wanted:
        found = [offer for offer in offers if offer.pack.name == name]
        if not found:
            raise UnknownPackError(name, tuple(sorted({offer.pack.name for offer in offers})))
        if len(found) > 1:
            raise PackError(str(found[0]), f"{found[1]} has the same name, and which of the two is meant is not known")
        yield found[0], _patches(found[0])


def _patches(offer: Offer) -> tuple[Patch, ...]:
    before = set(sys.modules)
    with _named_if_slow(offer):
        offered = _run(offer, "importing it raised", offer.entry.load)
        # Not any iterable: an iterator is empty when it is gone through again, and a set has another order in each
        # process.
        if not isinstance(offered, Sequence):
            raise PackError(str(offer), f"it is of type {type(offered).__name__}, where a tuple of Patch is wanted")
        items: tuple[object, ...] = _run(offer, "going through its patches raised", lambda: tuple(offered))
    early = [name for name in _TOO_EARLY if name in sys.modules and name not in before]
    if early:
        raise PackError(str(offer), f"it imports {early[0]} when it is loaded, not in the `make` of a target")
    if not items:
        raise PackError(str(offer), "it has no patches")
    return tuple(_checked(offer, item, at) for at, item in enumerate(items))


def _checked(offer: Offer, item: object, at: int) -> Patch:
    """A patch marked with its pack, whose functions blame it for what they do wrong."""
    problem = misfit(item, Patch, f"its patch {at}")
    if problem is not None:
        raise PackError(str(offer), problem)
    assert isinstance(item, Patch)

    def needing(variant: str, need: Callable[[Facts], Need]) -> Callable[[Facts], Need]:
        place = f"{item.id}/{variant}: need"

        def checked(facts: Facts) -> Need:
            answer = _run(offer, f"{place} raised", lambda: need(facts))
            wrong = misfit(answer, Need, place)
            if wrong is not None:
                raise PackError(str(offer), wrong)
            return answer

        return checked

    def parsing(gate: Gate[object]) -> Gate[object]:
        doing = f"parsing {gate.name} raised"
        return replace(gate, parse=lambda text: _run(offer, doing, lambda: gate.parse(text), passing=ValueError))

    variants = tuple(replace(one, need=needing(one.name, one.need)) for one in item.variants)
    return replace(item, variants=variants, gates=tuple(parsing(gate) for gate in item.gates), pack=offer.pack)


def _run(offer: Offer, doing: str, function: Callable[[], _Result], passing: type[Exception] | None = None) -> _Result:
    """What a function of the pack returns. What it raises, but for `passing`, is the pack's error."""
    try:
        return function()
    except KeyboardInterrupt:
        raise  # the user's
    except BaseException as error:  # somebody else's code: SystemExit must not end a server either
        if passing is not None and isinstance(error, passing):
            raise
        frames = [one for one in traceback.extract_tb(error.__traceback__)[1:] if not one.filename.startswith("<")]
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise PackError(str(offer), f"{doing} {type(error).__name__}: {error}{place}") from error


@contextmanager
def _named_if_slow(offer: Offer) -> Iterator[None]:
    timer = threading.Timer(PATIENCE_S, say, (f"still importing the third-party pack {offer}; nothing goes on so far",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _offer(entry: EntryPoint) -> Offer:
    return Offer(Pack(entry.name, _metadata(entry, "Name"), _metadata(entry, "Version")), entry)


def _metadata(entry: EntryPoint, field: str) -> str:
    found = entry.dist.metadata.get_all(field) if entry.dist is not None else None
    return str(found[0]) if found else "unknown"
