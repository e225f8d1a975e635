"""Which processes a server has, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One live process: its id, its parent's id, the id of its session, and its name as ``ps`` shows it."""

    pid: int
    parent: int
    session: int
    name: str


def _read(pid: int) -> Process | None:
    """The process with this id; None when it has ended, be it collected by its parent or not (a zombie)."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    # The second field is the name in parentheses and may itself hold blanks and parentheses.
    start, _, rest = stat.rpartition(")")
    state, parent, _, session = rest.split()[:4]
    if state in "ZX":
        return None
    return Process(pid, int(parent), int(session), " ".join(words).strip() or start.partition("(")[2])


def in_session(session: int) -> list[Process]:
    """The live processes of a session, the oldest id first. A child whose parent has ended is among them."""
    every = (_read(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return sorted((process for process in every if process and process.session == session), key=lambda p: p.pid)


def kill(pid: int, signal_number: int) -> None:
    """Signal a process that may already be gone."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return
