"""Keeps `<pid>.calls.json` up to date while the process lives: sglang ends its children with SIGKILL, so there is no
later moment at which they could tell."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from overlay import status
from overlay.simulate import counters

SCHEMA = 1
_PERIOD_S = 0.5


class Reporter:
    """Writes the counts of this process into a run directory, from the first count on."""

    def __init__(self, run_dir: Path, arch: str, aiter: str | None) -> None:
        self._run_dir = run_dir
        self._simulated = {"arch": arch, "aiter": aiter}
        self._reset()
        counters.on_count(self._counted)
        atexit.register(self._write)
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Start anew: a forked child has neither the thread nor the pid of its parent."""
        self._start = threading.Lock()
        self._running = False
        self._written: dict[str, int] = {}

    def _counted(self) -> None:
        # Helper processes of a server count nothing and write nothing.
        if self._running or not self._start.acquire(blocking=False):
            return
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="amd-sglang-calls", daemon=True).start()
        self._start.release()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._write()
            pause.wait(_PERIOD_S)

    def _write(self) -> None:
        calls = counters.snapshot()
        if calls == self._written:
            return
        pid = os.getpid()
        document = {"schema": SCHEMA, "pid": pid, "simulated": self._simulated, "calls": calls}
        try:
            status.write(self._run_dir, f"{pid}.calls.json", document)
        except OSError:
            return  # the run directory is gone: the launch is over, and so is anyone who would read this
        self._written = calls
