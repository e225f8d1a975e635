"""The denylist on disk: a small JSON document of this user's, rewritten in one step."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from overlay import gates, private_file
from overlay.errors import OverlayError

SCHEMA = 1
_KEYS: dict[str, type] = {
    "patch": str,
    "arch": str,
    "simulated": bool,
    "reason": str,
    "found": str,
    "versions": dict,
}


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of the file, each with exactly the keys of `_KEYS`; none where there is no file. Raises OverlayError
    for a file that is malformed, and for one that is a link or somebody else's."""
    try:
        text = private_file.read(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise OverlayError(
            f"the denylist {path} cannot be trusted: {why}. Remove it, or name another with {gates.DENYLIST.name}."
        ) from None
    try:
        return _entries(json.loads(text))
    except (ValueError, RecursionError) as error:
        problem = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise OverlayError(
            f"the denylist {path}{problem}. Until it is right nobody knows which kernels are wrong here: correct "
            "it, or remove it with `amd-sglang verify --clear` and verify again."
        ) from None


def write(path: Path, entries: Sequence[Mapping[str, object]]) -> None:
    """Put entries in place: a reader sees the old file or the new one. Raises OverlayError where that is impossible."""
    document = {"schema": SCHEMA, "denied": list(entries)}
    try:
        with private_file.replacing(path) as stream:
            stream.write(f"{json.dumps(document, indent=2)}\n".encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def remove(path: Path) -> None:
    """Remove the file, whatever it holds. Raises OverlayError where that is impossible."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from changing the file. Makes its folder, private to the user, if there is none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _unwritable(path: Path, error: OSError) -> OverlayError:
    return OverlayError(
        f"the denylist {path} cannot be written ({error.strerror}). Set {gates.DENYLIST.name} to a file in a folder "
        "that you own and can write; a patch that failed is kept away by --disable meanwhile."
    )


def _entries(document: object) -> list[dict[str, Any]]:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"it is no denylist of schema {SCHEMA}")
    entries = document.get("denied")
    if not isinstance(entries, list):
        raise ValueError("'denied' is missing or no list")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or entry.keys() != _KEYS.keys():
            raise ValueError(f"entry {number} has not exactly the keys {', '.join(_KEYS)}")
        for key, kind in _KEYS.items():
            if not isinstance(entry[key], kind):
                raise ValueError(f"{key!r} of entry {number} is {entry[key]!r}: expected {kind.__name__}")
    return entries
