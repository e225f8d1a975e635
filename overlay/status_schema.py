"""What a status document has to be, wherever it was read: from a file that may be anything, or from a server."""

from __future__ import annotations

from collections.abc import Mapping

from overlay.model import State

SCHEMA = 1

_STATES = frozenset(state.value for state in State)

#: What a reader of a status may rely on.
_SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "pid": int,
    "started": (int, type(None)),
    "role": str,
    "ranks": dict,
    "ready": bool,
    "overlay": str,
    "sglang": dict,
    "platform": dict,
    "plan": str,
    "patches": list,
}


def check(document: object) -> None:
    """Raise ValueError unless this is a status document of our schema."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a document of schema {SCHEMA}")
    for key, kind in _SHAPE.items():
        if key not in document or not isinstance(document[key], kind):
            raise ValueError(f"{key!r} is missing or of the wrong type")
    for group, keys in (("sglang", ("version",)), ("platform", ("kind", "arch", "simulated"))):
        missing = [key for key in keys if key not in document[group]]
        if missing:
            raise ValueError(f"{group!r} lacks {missing[0]!r}")
    for patch in document["patches"]:
        if not isinstance(patch, dict) or not all(isinstance(patch.get(key), str) for key in ("id", "state", "reason")):
            raise ValueError(f"{patch!r} is not the state of a patch")
        if patch["state"] not in _STATES:
            raise ValueError(f"{patch['state']!r} is no state that this version knows")
        if not isinstance(patch.get("worst_error"), int | float | None):
            raise ValueError(f"{patch['worst_error']!r} is no error")
