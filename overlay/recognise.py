"""Which of the sources that a patch knows a tree has, and which of them one that it does not know comes nearest to."""

from __future__ import annotations

import re

from overlay import fingerprint
from overlay.model import ABSENT, Decision, Image, Patch, SlotReport, Variant
from overlay.observer import Observer

_DIGEST = re.compile(r"[0-9a-f]{16}")


def recognise(patch: Patch, observer: Observer) -> Variant | None:
    """The first variant all of whose images the tree matches."""
    for variant in patch.variants:
        if all(_matches(image, observer) for image in variant.images):
            return variant
    return None


def nearest(patch: Patch, observer: Observer) -> Variant | str:
    """The variant that most of an unknown source matches, or the sentence that says why there is none.

    The rest must have kept its kind: a slot that a variant fills or relies on must still be one definition, one that it
    adds must still be absent, one that it rebinds must still be bound by the same import. Two variants that come
    equally near leave the choice to a guess, so there is none.
    """
    fitting = [v for v in patch.variants if all(_fits(image, observer) for image in v.images)]
    if not fitting:
        misfit = next(i for v in patch.variants for i in v.images if not _fits(i, observer))
        return f"{misfit.slot} is {_spell(observer.observe(misfit.slot))}, which no variant can be put on"
    shares = {variant.name: _share(variant, observer) for variant in fitting}
    best = [variant for variant in fitting if shares[variant.name] == max(shares.values())]
    if len(best) > 1:
        return f"it is as near to {' as to '.join(repr(variant.name) for variant in best)}"
    return best[0]


def reports(patch: Patch, variant: Variant | None, observer: Observer) -> tuple[SlotReport, ...]:
    """What a tree has in the slots of one variant; without one, in every slot that some variant knows."""
    images = variant.images if variant else [image for each in patch.variants for image in each.images]
    methods = {target.slot: target.method for target in variant.targets} if variant else {}
    slots = dict.fromkeys(image.slot for image in images)
    return tuple(SlotReport(slot, observer.observe(slot), methods.get(slot)) for slot in slots)


def drifted(decision: Decision) -> tuple[SlotReport, ...]:
    """The slots whose source the variant that was decided on does not know: none, unless drift was allowed."""
    if decision.variant is None:
        return ()
    known = {image.slot: image.digests for image in decision.variant.images}
    return tuple(report for report in decision.slots if report.observed not in known[report.slot])


def unknown(patch: Patch, seen: tuple[SlotReport, ...]) -> tuple[SlotReport, ...]:
    """The slots whose source no variant knows."""
    known = {(image.slot, digest) for variant in patch.variants for image in variant.images for digest in image.digests}
    return tuple(report for report in seen if (report.slot, report.observed) not in known)


def spell(seen: tuple[SlotReport, ...]) -> str:
    """What was seen, for a user."""
    return "; ".join(f"{report.slot} is {_spell(report.observed)}" for report in seen)


def _matches(image: Image, observer: Observer) -> bool:
    return observer.observe(image.slot) in image.digests


def _fits(image: Image, observer: Observer) -> bool:
    both_defined = _DIGEST.fullmatch(observer.observe(image.slot)) and any(map(_DIGEST.fullmatch, image.digests))
    return _matches(image, observer) or bool(both_defined)


def _share(variant: Variant, observer: Observer) -> float:
    """Equal exactly where the fractions are: division rounds correctly, and the numbers are small."""
    return sum(_matches(image, observer) for image in variant.images) / max(len(variant.images), 1)


def _spell(observed: str) -> str:
    if observed.startswith(fingerprint.IMPORT):
        return f"bound by another import ({observed.removeprefix(fingerprint.IMPORT)})"
    return {
        ABSENT: "absent",
        fingerprint.NO_MODULE: "absent (no such module)",
        fingerprint.NO_OWNER: "absent (no such class)",
        fingerprint.AMBIGUOUS: "bound more than once",
        fingerprint.UNREADABLE: "unreadable",
    }.get(observed, f"unknown code {observed}")
