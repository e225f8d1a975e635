"""What was seen of each patch on the real classes of each release: behaviour.toml, written by `make behaviour`.

The table holds what was run. A release on which a patch is planned and that the table does not name was not run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import tomllib  # type: ignore[import-not-found,unused-ignore]  # the tools need 3.11; the overlay is checked for 3.10

from demo.steps import ProvisionError
from matrix.expected import Expectation
from matrix.marks import is_about_sglang
from overlay.model import State
from overlay.registry import Registry

FILE = Path(__file__).with_name("behaviour.toml")
_HEAD = """\
# What was seen of each patch on the real classes of a release, in the simulated ROCm: written by `make behaviour`.
# installs: it was applied when its modules were imported. behaves: every check of its file passed.
# uninstalls: taken out again, every slot held the function of the release's source. A release that is planned and not
# named here was not run.
"""


class Seen(str, Enum):
    """What one step of one patch on one release showed."""

    YES = "yes"
    NO = "no"
    #: The release's modules cannot be imported where there is no GPU, or not with these packages.
    NO_IMPORT = "cannot be imported here"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One patch on one release; `note` says why where a step is not YES."""

    installs: Seen = Seen.NOT_RUN
    behaves: Seen = Seen.NOT_RUN
    uninstalls: Seen = Seen.NOT_RUN
    note: str = ""

    @property
    def steps(self) -> tuple[Seen, Seen, Seen]:
        return self.installs, self.behaves, self.uninstalls

    @property
    def passed(self) -> bool:
        return all(step is Seen.YES for step in self.steps)


Table = Mapping[str, Mapping[str, Cell]]
"""Patch id -> release -> what was seen, for everything that was run."""


def planned(registry: Registry, expectation: Expectation) -> dict[str, tuple[str, ...]]:
    """Patch id -> the releases on which it is planned in some configuration. What the code of another distribution
    decides, such as aiter's, is no business of a release."""
    return {
        patch.id: tuple(
            release
            for release, survey in expectation.surveys.items()
            if any(answer.startswith(State.PLANNED.value) for answer in survey.decisions.get(patch.id, {}).values())
        )
        for patch in registry
        if is_about_sglang(patch)
    }


def dumps(table: Table) -> str:
    """The file's text; the same table always gives the same text."""
    parts = [_HEAD]
    for patch_id, cells in table.items():
        lines = [f"{json.dumps(release)} = {_inline(cell)}\n" for release, cell in cells.items()]
        parts.append(f"[{patch_id}]\n{''.join(lines)}")
    return "\n".join(parts)


def loads(text: str, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Cell]]:
    """The table that a text holds, for what is planned now.

    Raises ProvisionError for text of another form, and for a patch or a release where nothing is planned (any more).
    """
    document = tomllib.loads(text)
    for patch_id, rows in document.items():
        for release in rows:
            if release not in wanted.get(patch_id, ()):
                raise ProvisionError(
                    f"{FILE.name} tells of {patch_id} on {release}, where no such patch is planned: delete the line"
                )
    return {
        patch_id: {release: _cell(patch_id, release, row) for release, row in rows.items()}
        for patch_id, rows in document.items()
    }


def read(registry: Registry, expectation: Expectation, file: Path = FILE) -> dict[str, dict[str, Cell]]:
    """The committed table."""
    return loads(file.read_text(encoding="utf-8"), planned(registry, expectation))


def merged(table: Table, fresh: Table, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Cell]]:
    """`table` with what was seen anew in place of what it held, in the order of `wanted`."""
    both = {patch_id: {**table.get(patch_id, {}), **fresh.get(patch_id, {})} for patch_id in wanted}
    return {
        patch_id: {release: both[patch_id][release] for release in releases if release in both[patch_id]}
        for patch_id, releases in wanted.items()
        if both[patch_id]
    }


def rows(cells: Mapping[str, Cell], releases: tuple[str, ...]) -> Iterator[tuple[str, Cell]]:
    """Neighbouring releases with the same cell as one: `0.5.7 to 0.5.9`, and the cell."""
    everything = [(release, cells.get(release, Cell())) for release in releases]
    for cell, group in itertools.groupby(everything, key=lambda row: row[1]):
        names = [release for release, _ in group]
        yield " to ".join(dict.fromkeys((names[0], names[-1]))), cell


def _inline(cell: Cell) -> str:
    shown = {name: value for name, value in asdict(cell).items() if value}
    # A JSON string is a TOML basic string, but for DEL.
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in shown.items()) + " }"


def _cell(patch_id: str, release: str, row: Mapping[str, str]) -> Cell:
    try:
        steps = {name: Seen(value) for name, value in row.items() if name != "note"}
        cell = Cell(**steps, note=row.get("note", ""))
    except (TypeError, ValueError, AttributeError) as error:
        raise ProvisionError(f"{FILE.name}, {patch_id} on {release}: {error}") from None
    if not cell.passed and not cell.note:
        raise ProvisionError(f"{FILE.name}, {patch_id} on {release}: a step is not `yes` and no `note` says why")
    return cell
