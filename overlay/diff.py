"""What a patch changes in one sglang, as text: each slot's own source against what the patch puts there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from overlay import excerpt
from overlay.excerpt import Excerpt
from overlay.model import Method, Patch, Slot
from overlay.observer import Observer
from overlay.recognise import nearest, recognise, reports, spell, unknown
from overlay.source import SourceTree
from overlay.version import SglangVersion, read_version

SCHEMA = 1

_HOW = {
    Method.REPLACE: "replaces it",
    Method.WRAP: "wraps it: the original runs inside",
    Method.DEFINE: "defines it: there is nothing under this name",
}


@dataclass(frozen=True)
class SlotDiff:
    """One slot: what it holds in the sglang at hand, and what the patch puts there."""

    slot: Slot
    observed: str
    method: Method
    original: tuple[Excerpt, ...]
    patched: tuple[Excerpt, ...]

    @property
    def how(self) -> str:
        added = self.method is Method.REPLACE and not self.original
        return "adds it" if added else _HOW[self.method]

    @property
    def unified(self) -> str:
        """The whole of both as one unified diff. What is wrapped stays, so a wrapper is all addition."""
        before = [] if self.method is Method.WRAP else _lines(self.original)
        places = [f"{one.file}:{one.line}" for one in (*self.original[:1], *self.patched[:1])]
        old, new = (places if self.original else ["/dev/null", *places])[:2]
        after = _lines(self.patched)
        return "".join(difflib.unified_diff(before, after, old, new, n=len(before) + len(after)))

    def to_json(self) -> dict[str, object]:
        return {
            "slot": str(self.slot),
            "observed": self.observed,
            "method": self.method.value,
            "original": [vars(one) for one in self.original],
            "patched": [vars(one) for one in self.patched],
            "diff": self.unified,
        }


@dataclass(frozen=True)
class PatchDiff:
    """`variant` is the known source that the sglang has; where it has none, the one it comes nearest to, and `strange`
    says what differs."""

    patch: Patch
    sglang_path: str
    version: SglangVersion
    variant: str | None
    strange: str | None
    slots: tuple[SlotDiff, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "id": self.patch.id,
            "sglang": {"version": self.version.text, "kind": self.version.kind.value, "path": self.sglang_path},
            "variant": self.variant,
            "unknown": self.strange,
            "targets": [one.to_json() for one in self.slots],
        }


def diff_patch(patch: Patch, tree: SourceTree) -> PatchDiff:
    """Compare, slot by slot, an sglang with what a patch would make of it. Platform and switches play no part."""
    observer = Observer(tree)
    variant = recognise(patch, observer)
    strange = None
    if variant is None:
        found = nearest(patch, observer)
        variant = None if isinstance(found, str) else found
        seen = reports(patch, variant, observer)
        strange = spell(unknown(patch, seen) or seen) + (f"; {found}" if isinstance(found, str) else "")
    slots = tuple(
        SlotDiff(
            target.slot,
            observer.observe(target.slot),
            target.method,
            excerpt.upstream(tree, target.slot),
            excerpt.replacement(target.make),
        )
        for target in (variant.targets if variant else ())
    )
    return PatchDiff(patch, tree.path, read_version(tree), variant.name if variant else None, strange, slots)


def _lines(excerpts: tuple[Excerpt, ...]) -> list[str]:
    return [f"{line}\n" for line in "\n\n".join(one.text for one in excerpts).splitlines()]
