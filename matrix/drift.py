"""The difference between what was reviewed and what the releases show now, as a work list with its causes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.version import Version

from matrix.expected import Expectation
from matrix.survey import Survey, slots_of
from overlay import excerpt, fingerprint
from overlay.model import ABSENT, Patch, Slot, State
from overlay.registry import Registry
from overlay.source import SourceTree

#: What an observation is called when there is nothing (any more) where a patch looks.
_GONE = (ABSENT, fingerprint.NO_MODULE, fingerprint.NO_OWNER)


@dataclass(frozen=True)
class Drift:
    """One difference: a name for its kind, what it concerns, and where it has one, the source diff that caused it."""

    kind: str
    subject: str
    text: str
    diff: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.text}" + (f"\n{self.diff}" if self.diff else "")


@dataclass(frozen=True)
class Comparison:
    """Compares surveys with an expectation. `tree` opens the source of a release, for the diffs."""

    registry: Registry
    expected: Expectation
    tree: Callable[[str], SourceTree]

    def drifts(self, surveys: Mapping[str, Survey], published: Sequence[str]) -> list[Drift]:
        """What differs: the set of patches, the set of published releases, and every survey."""
        found = [*self._patches(), *self._withdrawn(published)]
        for release, survey in surveys.items():
            if release in self.expected.surveys:
                found += self._changes(release, release, survey)
            else:
                nearest = self.nearest(release)
                found.append(Drift("new release", release, f"nobody has reviewed it; compared with {nearest}"))
                found += self._changes(release, nearest, survey)
        return found

    def nearest(self, release: str) -> str:
        """The newest reviewed release before an unknown one, else the oldest."""
        before = [known for known in self.expected.releases if Version(known) < Version(release)]
        return before[-1] if before else self.expected.releases[0]

    def _patches(self) -> Iterator[Drift]:
        reviewed = next(iter(self.expected.surveys.values())).decisions
        for patch_id in self.registry.ids:
            if patch_id not in reviewed:
                yield Drift("new patch", patch_id, "nobody has reviewed its decisions")
        for patch_id in reviewed:
            if patch_id not in self.registry.ids:
                yield Drift("patch gone", patch_id, "it was reviewed and is registered no more")

    def _withdrawn(self, published: Sequence[str]) -> Iterator[Drift]:
        for release in self.expected.releases:
            if release not in published:
                yield Drift("release gone", release, "it was reviewed and the index has it no more")

    def _changes(self, release: str, reviewed: str, survey: Survey) -> Iterator[Drift]:
        expected = self.expected.surveys[reviewed]
        for patch in self.registry:
            if patch.id not in expected.decisions:
                continue
            before, now = expected.decisions[patch.id], survey.decisions[patch.id]
            yield from _decisions(release, patch.id, before, now)
            if _concerns(before) or _concerns(now):
                yield from self._slots(release, reviewed, survey, patch)

    def _slots(self, release: str, reviewed: str, survey: Survey, patch: Patch) -> Iterator[Drift]:
        expected = self.expected.surveys[reviewed]
        for slot in slots_of(patch):
            before, now = expected.slots.get(str(slot)), survey.slots[str(slot)]
            if before is None:
                yield Drift("new slot", f"{release} {slot}", f"{patch.id} looks at it, and nobody has reviewed it")
            elif before != now:
                vanished = now in _GONE and before not in _GONE
                kind = "vanished target" if vanished else "changed fingerprint"
                text = f"{before} -> {now}, which {patch.id} looks at"
                yield Drift(kind, f"{release} {slot}", text, self._diff(slot, reviewed, release))

    def _diff(self, slot: Slot, old: str, new: str) -> str:
        (old_name, before), (new_name, after) = (_text(self.tree(release), release, slot) for release in (old, new))
        return "\n".join(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))


def _text(tree: SourceTree, release: str, slot: Slot) -> tuple[str, list[str]]:
    """Where a slot's source stands in a release, and its lines."""
    found = excerpt.upstream(tree, slot)
    name = f"{release}/{found[0].file}:{found[0].line}" if found else "/dev/null"
    return name, [line for one in found for line in one.text.splitlines()]


def _decisions(release: str, patch_id: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Drift]:
    """One drift for every change of answer, with the scenarios in which it changed."""
    changes: dict[tuple[str, str], list[str]] = {}
    for scenario, answer in now.items():
        if before.get(scenario) != answer:
            changes.setdefault((before.get(scenario, "nothing"), answer), []).append(scenario)
    for (old, new), scenarios in changes.items():
        yield Drift("changed decision", f"{release} {patch_id}", f"{old} -> {new} [{', '.join(scenarios)}]")


def _concerns(answers: Mapping[str, str]) -> bool:
    """Whether a release is any business of a patch: one out of its range may change as it likes."""
    return any(answer != State.UNSUPPORTED_VERSION.value for answer in answers.values())
