"""The processes of this server as they are now: files are read at most twice a second, however many ask."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay import status
from overlay.web.document import Row, served

_KEEP_SECONDS = 0.5


@dataclass(frozen=True)
class View:
    """One reading: the rows, and the answer that was made of them."""

    rows: tuple[Row, ...]
    body: bytes


class Snapshot:
    """The status files of one run, read in a thread of its own so that the event loop never waits for a disk.

    `own` is this process's document as it stands in memory: it is shown also where no file could be written.
    """

    def __init__(
        self, run_dir: Path | None, own: Callable[[], Mapping[str, object]], nodes: Callable[[], int | None]
    ) -> None:
        self._run_dir = run_dir
        self._own = own
        self._nodes = nodes
        # One thread: those who ask at the same time wait for one reading, and need no lock.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="amd-sglang-status")
        self._view: View | None = None
        self._until = 0.0

    async def view(self) -> View:
        """What is there: no process in it has ended, and nothing else is older than half a second."""
        return await asyncio.wrap_future(self._reader.submit(self._fresh))

    def _fresh(self) -> View:
        if self._view is None or time.monotonic() >= self._until or _outlived(self._view):
            self._view = self._take()
            self._until = time.monotonic() + _KEEP_SECONDS
        return self._view

    def _take(self) -> View:
        rows: list[Any] = status.read_run(self._run_dir) if self._run_dir is not None else []
        run = self._run_dir.name if self._run_dir is not None else ""
        own: dict[str, Any] = {"run": run, **self._own(), "alive": True}
        identity = ("pid", "started", "boot")
        mine = [row for row in rows if all(row.get(key) == own[key] for key in identity)]
        rows = [_corrected(row, own) if row in mine else row for row in rows] + ([] if mine else [own])
        document = served(rows, host=str(own["host"]), nodes=self._nodes())
        return View(tuple(rows), json.dumps(document).encode())


def _outlived(view: View) -> bool:
    """Whether a process has ended since."""
    return any(row["alive"] and status.started(row["pid"]) != row["started"] for row in view.rows)


def _corrected(row: Row, own: Mapping[str, Any]) -> Row:
    """A row of this process's file, which may be late, with what is true now; its counters stand beside."""
    filed = {patch["id"]: patch for patch in row["patches"]}
    return {**row, **own, "patches": [{**filed.get(patch["id"], {}), **patch} for patch in own["patches"]]}
