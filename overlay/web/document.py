"""What the processes of one run add up to: the document that the server answers with. Pure functions."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overlay.model import BROKEN
from overlay.status_schema import SCHEMA

#: One process, as `overlay.status.read_run` has it.
Row = Mapping[str, Any]

_BROKEN = frozenset(state.value for state in BROKEN)


def served(rows: Sequence[Row], *, host: str, nodes: int | None) -> dict[str, object]:
    """The document of `GET /overlay/status`: every process of this host, and whether all is well with them.

    `nodes` is how many hosts sglang was told to run on, None where that is not known. Only the first of them serves
    HTTP, and no other shows its processes here.
    """
    reasons = troubles(rows)
    return {
        "schema": SCHEMA,
        "healthy": not reasons,
        "reasons": reasons,
        "host": host,
        "nodes": nodes,
        "note": f"sglang runs on {nodes} nodes, and these are the processes of {host} alone: on each of the others, "
        "`amd-sglang patches status` shows its own."
        if nodes is not None and nodes > 1
        else None,
        "processes": [_finite(_public(row)) for row in rows],
    }


def troubles(rows: Sequence[Row]) -> list[str]:
    """What is wrong, a sentence each: a process that served and has ended, a broken patch, a file without sense."""
    found = []
    for row in rows:
        if "error" in row:
            found.append(f"{_public(row)['file']}: {row['error']}")
        elif not row["alive"]:
            if row["ready"] and not replaced(row, rows):
                found.append(f"{name(row)} has ended")
        else:
            found += [
                f"{patch['id']} is {patch['state']} in {name(row)}: {patch['reason']}"
                for patch in row["patches"]
                if broken(patch)
            ]
    return found


def name(row: Row) -> str:
    """A process as a person says it: `scheduler tp1 (pid 4711)`."""
    return f"{' '.join(filter(None, (row['role'], ranks(row))))} (pid {row['pid']})"


def ranks(row: Row) -> str:
    """The ranks of a process in one word or several: `dp1 tp0`; empty where its groups have one member."""
    return " ".join(f"{group}{number}" for group, number in row["ranks"].items())


def replaced(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a process that ended has a successor: uvicorn starts a worker that died again."""
    return any(
        other["alive"]
        and other["ready"]
        and (other["role"], other["ranks"]) == (row["role"], row["ranks"])
        and (other["started"] or 0) > (row["started"] or 0)
        for other in rows
        if "error" not in other
    )


def _public(row: Row) -> dict[str, Any]:
    """A row without the folder that its file lies in."""
    return {**row, **({"file": Path(row["file"]).name} if "file" in row else {})}


def broken(patch: Mapping[str, Any]) -> bool:
    """Whether a patch is neither in force nor ruled out."""
    return patch["state"] in _BROKEN


def _finite(value: Any) -> Any:
    """The same with the largest number there is for what JSON has none for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return sys.float_info.max if isinstance(value, float) and not math.isfinite(value) else value
