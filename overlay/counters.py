"""What the guards of a process count, in a file that is mapped into it.

Counting is one addition in memory, on the hot path of a server; a reader sees it at once, without a thread here and
also after a SIGKILL. The file is `<pid>.counters` beside the status file: for each guarded patch, in the order of
`guarded` in the status document, one row of FIELDS, each 64 bits in the machine's byte order.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from overlay import private_file

FIELDS = ("calls", "fallbacks", "failures", "shadowed")
"""Calls the kernel served; calls meant for it that it does not take; times it failed; calls that ran both ways. A
replayed graph or a compiled model calls nothing of Python's, and counts nothing."""

CALLS, FALLBACKS, FAILURES, SHADOWED = range(len(FIELDS))

_ROW = 8 * len(FIELDS)


def path_of(run_dir: Path, pid: int) -> Path:
    """Where a process counts."""
    return run_dir / f"{pid}.counters"


def in_file(path: Path, rows: int) -> memoryview:
    """Zeros that whoever reads `path` sees change. Raises OSError, which leaves no file behind.

    A file of that name that somebody still has mapped keeps its content, under no name.
    """
    with private_file.replacing(path) as stream:
        # Writing to a mapped page that the disk has no room for ends the process with SIGBUS: so it is allotted now.
        os.posix_fallocate(stream.fileno(), 0, rows * _ROW)
        page = mmap.mmap(stream.fileno(), rows * _ROW)
    return memoryview(page).cast("Q")


def in_memory(rows: int) -> memoryview:
    """Zeros that nobody else sees."""
    return memoryview(bytearray(rows * _ROW)).cast("Q")


def row(counts: memoryview, number: int) -> memoryview:
    """The counters of one guard, to be indexed by CALLS, FALLBACKS, FAILURES and SHADOWED."""
    return counts[number * len(FIELDS) : (number + 1) * len(FIELDS)]


def read(path: Path, guarded: Sequence[str]) -> dict[str, dict[str, int]]:
    """Patch id -> field -> count, of the patches a status document calls guarded, in its order.

    Raises OSError, and ValueError for a file that is too short for them or that somebody else put there.
    """
    content = private_file.read(path)
    if len(content) < len(guarded) * _ROW:
        raise ValueError(f"{path} has {len(content)} bytes for {len(guarded)} guards")
    words = [int.from_bytes(content[at : at + 8], sys.byteorder) for at in range(0, len(guarded) * _ROW, 8)]
    rows = [words[at : at + len(FIELDS)] for at in range(0, len(words), len(FIELDS))]
    return {patch_id: dict(zip(FIELDS, counts, strict=True)) for patch_id, counts in zip(guarded, rows, strict=True)}
