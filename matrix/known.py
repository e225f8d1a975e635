"""What the releases have where patches and witnesses look: the table that spares a process parsing them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple

from overlay import known_sources, witness
from overlay.model import Slot
from overlay.registry import Registry
from overlay.sighting import Memory, Sighting, SourceFile
from overlay.source import SourceTree, read_module
from overlay.web import attach

#: SHA-256 of a file -> qualified name -> its sighting.
Table = dict[str, dict[str, Sighting]]


def slots(registry: Registry) -> tuple[Slot, ...]:
    """Every slot of sglang's own that a process may look at, once. aiter is not published with sglang."""
    images = (image for patch in registry for variant in patch.variants for image in variant.images)
    looked_at = dict.fromkeys(
        [*(image.slot for image in images), *(seam.slot for seam in witness.SEAMS), witness.CONNECT, attach.MIDDLEWARE]
    )
    return tuple(slot for slot in looked_at if slot.module.partition(".")[0] == "sglang")


def table(trees: Iterable[SourceTree], slots: Iterable[Slot]) -> Table:
    """What these releases have in these slots, from their text alone. Files that cannot be read are left out."""
    by_module: dict[str, list[str]] = {}
    for slot in slots:
        by_module.setdefault(slot.module, []).append(slot.qualname)
    memory, found = Memory(), Table()
    for tree in trees:
        for module, names in by_module.items():
            source = read_module(tree, module)
            file = SourceFile(source, memory) if source is not None else None
            if file is not None and file.readable:
                found.setdefault(file.content, {}).update({name: file.sighting(name) for name in names})
    return found


def missing(known: Table, fresh: Table) -> list[str]:
    """The sightings of `fresh` that `known` lacks or has otherwise, as a user reads them."""
    rows = ((file, name, sighting) for file, names in fresh.items() for name, sighting in names.items())
    return [f"{name} in the file {file}" for file, name, sighting in rows if known.get(file, {}).get(name) != sighting]


def dumps(known: Table) -> str:
    """The form of `known_sources.json`: a line per file, so that a diff names files, and no field that says nothing."""
    lines = (f"{json.dumps(file)}: {json.dumps(_rows(names))}" for file, names in sorted(known.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(names: Mapping[str, Sighting]) -> dict[str, list[object]]:
    return {name: list(astuple(sighting))[: None if sighting.last else 1] for name, sighting in sorted(names.items())}


def loads(text: str) -> Table:
    """The reverse of `dumps`."""
    rows = json.loads(text)
    memory = Memory(rows)
    return {file: memory.of(file) for file in rows}


def read() -> Table:
    """The table that is shipped."""
    return loads(known_sources.FILE.read_text(encoding="utf-8"))


def write(table: Table) -> None:
    """Ship a table."""
    known_sources.FILE.write_text(dumps(table), encoding="utf-8")
