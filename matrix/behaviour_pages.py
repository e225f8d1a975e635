"""What the document about the patches says of their behaviour: one overview, and one table in each patch's section."""

from __future__ import annotations

from collections.abc import Mapping

from matrix.behaviour import Cell, Seen, Table, rows
from matrix.tables import row

_HEAD = """\
## On the real classes

Each patch, on each release where it is planned, in a process that imports that release in the simulated ROCm: it has to
be installed, every check of its behaviour has to pass, and once it is taken out every slot has to hold the function of
the release's source again. `make behaviour` runs all of it. `Y` all three; `N` one was not so; `x` cannot be imported
here; `?` not run yet; empty where nothing is planned. The sections of the patches say why.
"""


def overview(table: Table, planned: Mapping[str, tuple[str, ...]], releases: tuple[str, ...]) -> str:
    """Every patch against every release, as one letter."""
    common = "0.5." if all(release.startswith("0.5.") for release in releases) else ""
    lines = [
        row("patch", *(release.removeprefix(common) for release in releases)),
        row("---", *(":-:" for _ in releases)),
    ]
    for patch_id, wanted in planned.items():
        if not wanted:  # for development builds, which are no releases
            continue
        cells = {release: table.get(patch_id, {}).get(release, Cell()) for release in wanted}
        letters = (letter(cells[release]) if release in cells else "" for release in releases)
        lines.append(row(f"[{patch_id}](#{patch_id})", *letters))
    every = [table.get(patch_id, {}).get(release, Cell()) for patch_id, wanted in planned.items() for release in wanted]
    run = sum(cell != Cell() for cell in every)
    count = f"{run} of {len(every)} were run, {sum(cell.passed for cell in every)} are as they have to be."
    return f"{_HEAD}\n{count}\n\n" + "\n".join(lines) + "\n"


def letter(cell: Cell) -> str:
    """One letter for a cell, the worst of its steps."""
    for step, mark in ((Seen.NO, "N"), (Seen.NO_IMPORT, "x"), (Seen.NOT_RUN, "?")):
        if step in cell.steps:
            return mark
    return "Y"


def details(cells: Mapping[str, Cell], planned: tuple[str, ...]) -> str:
    """The table of one patch, neighbouring releases with the same answers in one row."""
    lines = [
        row("sglang", "installs", "behaves", "uninstalls to the pristine source", "why"),
        row("---", "---", "---", "---", "---"),
    ]
    lines += [row(run, *(step.value for step in cell.steps), cell.note) for run, cell in rows(cells, planned)]
    return "\n".join(lines)
