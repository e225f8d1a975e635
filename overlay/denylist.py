"""Patches whose kernel was found wrong on a GPU: `amd-sglang verify` writes them down, and every launch honours it.

The launcher reads the file once and hands what concerns this machine to its children, so that all of them plan alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path

from overlay import denylist_file, gates
from overlay.gates import Gate
from overlay.platform import Platform
from overlay.records import dataclass


@dataclass(frozen=True)
class Entry:
    """One patch on one kind of GPU: what was wrong, when it was found (ISO 8601), and among which versions."""

    patch: str
    arch: str
    simulated: bool
    reason: str
    found: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def concerns(self, platform: Platform) -> bool:
        """Whether it was found on the GPU of a platform. Where that is unknown, it counts: a wrong answer costs more
        than a patch that is missing."""
        if platform.kind != "rocm" or platform.simulated != self.simulated:
            return False
        return platform.arch in (None, self.arch)

    @property
    def where(self) -> str:
        return f"{'simulated ' * self.simulated}{self.arch}"

    def __str__(self) -> str:
        return (
            f"verify found its kernel wrong on {self.where} on {self.found[:10]}: {self.reason}; "
            f"`amd-sglang verify --clear {self.patch}` lifts it"
        )


def path_of(environ: Mapping[str, str]) -> Path:
    """AMD_SGLANG_DENYLIST, else `amd-sglang/denylist.json` among the user's state files."""
    given = gates.DENYLIST.read(environ)
    if given:
        return Path(given).absolute()
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the standard wants a relative one ignored
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "amd-sglang" / "denylist.json"


def read(path: Path) -> tuple[Entry, ...]:
    """The entries, oldest first; none where there is no file. Raises OverlayError for one that cannot be trusted."""
    return tuple(Entry(**entry) for entry in denylist_file.read(path))


def deny(path: Path, entries: tuple[Entry, ...]) -> None:
    """Add entries, each in the place of an older one of its patch and GPU. Raises OverlayError where it cannot."""
    new = {(entry.patch, entry.where) for entry in entries}
    with denylist_file.locked(path):
        kept = tuple(entry for entry in read(path) if (entry.patch, entry.where) not in new)
        denylist_file.write(path, [asdict(entry) for entry in (*kept, *entries)])


def clear(path: Path, ids: tuple[str, ...]) -> tuple[Entry, ...]:
    """Take every entry of these patches out, and return them. Raises OverlayError where it cannot."""
    if not any(entry.patch in ids for entry in read(path)):
        return ()
    with denylist_file.locked(path):
        known = read(path)
        denylist_file.write(path, [asdict(entry) for entry in known if entry.patch not in ids])
    return tuple(entry for entry in known if entry.patch in ids)


def on(environ: Mapping[str, str], platform: Platform) -> dict[str, str]:
    """Patch ids, and why the file denies them on `platform`. Raises like `read`."""
    return {entry.patch: str(entry) for entry in read(path_of(environ)) if entry.concerns(platform)}


def handing_over(environ: Mapping[str, str], platform: Platform) -> dict[str, str]:
    """`environ` with what the file denies on `platform`. Raises like `read`."""
    denied = on(environ, platform)
    rest = without(environ)
    return {**rest, _HANDED.name: json.dumps(denied)} if denied else rest


def handed_over(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Patch ids, and why they are denied, as the launcher of this process tree has found."""
    return _HANDED.read(environ)


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a program in which nothing is denied."""
    return {name: value for name, value in environ.items() if name != _HANDED.name}


def _reasons(text: str) -> Mapping[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("what a launcher wrote there: it is no switch")
    return found


_HANDED = Gate[Mapping[str, str]]("AMD_SGLANG_DENIED", "what the denylist says of this machine", {}, _reasons)
