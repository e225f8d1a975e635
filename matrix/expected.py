"""The reviewed expectation: which decision every patch meets on every release, and every source it met there.

Kept as TOML that a person reads in a diff: one line per run of releases with the same answer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomllib  # type: ignore[import-not-found,unused-ignore]  # the tools need 3.11; the overlay is checked for 3.10

from matrix.scenarios import SCENARIOS
from matrix.survey import Survey

FILE = Path(__file__).with_name("expected.toml")
_EVERY = "every configuration"
_RANGE = " .. "
_HEAD = """\
# Which decision every patch meets on every release of sglang, and the source in every slot that a patch looks at.
# Written by `make matrix-update`, reviewed by a person, compared with the real releases by `make matrix`.
"""


@dataclass(frozen=True)
class Expectation:
    """The surveys of releases, oldest first."""

    surveys: Mapping[str, Survey]

    @property
    def releases(self) -> tuple[str, ...]:
        return tuple(self.surveys)

    def covers(self, patch_id: str) -> bool:
        """Whether every release has a decision about this patch under every scenario."""
        names = {scenario.name for scenario in SCENARIOS}
        return all(names <= survey.decisions.get(patch_id, {}).keys() for survey in self.surveys.values())

    def rows(self, patch_id: str) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
        """The scenarios of one patch, those with the same answers together, with their outcome by release."""
        answers: dict[tuple[str, ...], list[str]] = {}
        for scenario in SCENARIOS:
            row = tuple(survey.decisions[patch_id][scenario.name] for survey in self.surveys.values())
            answers.setdefault(row, []).append(scenario.name)
        for row, names in answers.items():
            yield tuple(names), dict(zip(self.releases, row, strict=True))


def runs(by_release: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Neighbouring releases with the same answer as one: `0.5.7 .. 0.5.9`, and the answer."""
    for answer, group in itertools.groupby(by_release.items(), key=lambda item: item[1]):
        releases = [release for release, _ in group]
        yield _RANGE.join(dict.fromkeys((releases[0], releases[-1]))), answer


def dumps(expectation: Expectation) -> str:
    """The file's text; the same expectation always gives the same text."""
    releases = "".join(f"    {_quoted(release)},\n" for release in expectation.releases)
    parts = [_HEAD, f"releases = [\n{releases}]\n"]
    first = next(iter(expectation.surveys.values()))
    for patch_id in first.decisions:
        for names, by_release in expectation.rows(patch_id):
            who = _EVERY if len(names) == len(SCENARIOS) else ", ".join(names)
            parts.append(_table(("decisions", patch_id, who), by_release))
    for slot in sorted(first.slots):
        parts.append(_table(("slots", slot), {r: s.slots[slot] for r, s in expectation.surveys.items()}))
    return "\n".join(parts)


def loads(text: str) -> Expectation:
    """The expectation a text holds. Raises tomllib.TOMLDecodeError, KeyError or ValueError if it is none."""
    document = tomllib.loads(text)
    releases: list[str] = document["releases"]
    decisions: dict[str, dict[str, dict[str, str]]] = {release: {} for release in releases}
    for patch_id, groups in document["decisions"].items():
        for who, table in groups.items():
            names = [scenario.name for scenario in SCENARIOS] if who == _EVERY else who.split(", ")
            for release, answer in _spread(table, releases):
                decisions[release].setdefault(patch_id, {}).update(dict.fromkeys(names, answer))
    slots: dict[str, dict[str, str]] = {release: {} for release in releases}
    for slot, table in document["slots"].items():
        for release, answer in _spread(table, releases):
            slots[release][slot] = answer
    return Expectation({release: Survey(decisions[release], slots[release]) for release in releases})


def read(file: Path = FILE) -> Expectation:
    return loads(file.read_text(encoding="utf-8"))


def _spread(table: Mapping[str, str], releases: Sequence[str]) -> Iterator[tuple[str, str]]:
    for run, answer in table.items():
        first, _, last = run.partition(_RANGE)
        for release in releases[releases.index(first) : releases.index(last or first) + 1]:
            yield release, answer


def _table(path: tuple[str, ...], by_release: Mapping[str, str]) -> str:
    lines = [f"{_quoted(run)} = {_quoted(answer)}\n" for run, answer in runs(by_release)]
    return f"[{'.'.join(map(_key, path))}]\n{''.join(lines)}"


#: A JSON string is a TOML basic string.
_quoted: Callable[[str], str] = json.dumps


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else _quoted(name)
