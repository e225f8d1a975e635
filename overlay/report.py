"""What one process knows of itself, and its status file."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from pathlib import Path

import overlay
from overlay import counters, status
from overlay.bound import Measured
from overlay.model import State
from overlay.plan import Plan
from overlay.say import say
from overlay.status_schema import SCHEMA


class ProcessReport:
    """The states of the patches in this process and the role it plays; every change is written at once."""

    def __init__(self, plan: Plan, run_dir: Path | None, *, strict: bool) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._strict = strict
        self._states = {d.patch.id: (d.state, d.reason) for d in plan.decisions}
        self._role, self._ready = "starting", False
        self._ranks: dict[str, int] = {}
        self._told = False
        self._guarded: list[str] = []
        self._counts: memoryview | None = None
        self._worst: dict[str, Measured] = {}

    @property
    def role(self) -> str:
        """What this process turned out to be."""
        return self._role

    def state(self, patch_id: str) -> tuple[State, str]:
        """Where a patch stands in this process, and why."""
        return self._states[patch_id]

    def applied(self) -> list[str]:
        """The patches that are in force here."""
        return [patch_id for patch_id, (state, _) in self._states.items() if state is State.APPLIED]

    def record(self, patch_id: str, state: State, reason: str) -> None:
        """A patch has come to stand somewhere else."""
        self._states[patch_id] = (state, reason)
        self.write()

    def counts(self, patch_id: str) -> memoryview:
        """Where the guard of a patch counts. A failure to make the file is said once: then nobody sees the numbers."""
        if patch_id not in self._states:
            return counters.in_memory(1)
        if self._counts is None:
            self._counts = self._allot()
        self._guarded.append(patch_id)
        return counters.row(self._counts, len(self._guarded) - 1)

    def forked(self) -> None:
        """This is a child of the process that counted so far: what is mapped here is the parent's file."""
        self._counts, self._guarded = None, []

    def measured(self, patch_id: str, error: Measured) -> None:
        """The largest error of a patch in shadow runs so far."""
        self._worst[patch_id] = error
        self.write()

    def identify(self, role: str, ranks: dict[str, int], *, ready: bool) -> None:
        """This process turns out to play a role."""
        self._role, self._ranks, self._ready = role, ranks, ready
        self.write()

    def write(self) -> None:
        """Put the status file in place. A failure does not stop serving: it is said once, and the next change of
        this process tries again, since a disk that was full need not stay so."""
        if self._run_dir is None:
            return
        try:
            status.write(self._run_dir, f"{os.getpid()}.json", self.document())
        except OSError as error:
            if not self._told:
                say(f"cannot write the status of pid {os.getpid()} to {self._run_dir}: {error.strerror}")
            self._told = True
        else:
            self._told = False

    def _allot(self) -> memoryview:
        rows = len(self._states)
        if self._run_dir is None:
            return counters.in_memory(rows)
        try:
            return counters.in_file(counters.path_of(self._run_dir, os.getpid()), rows)
        except OSError as error:
            say(f"pid {os.getpid()} counts for itself alone: no file in {self._run_dir} ({error.strerror})")
            return counters.in_memory(rows)

    def document(self) -> dict[str, object]:
        """What the status file of this process says, or would say if it could be written."""
        pid = os.getpid()
        return {
            "schema": SCHEMA,
            "pid": pid,
            "ppid": os.getppid(),
            "started": status.started(pid),
            **status.machine(),
            "role": self._role,
            "ranks": self._ranks,
            "ready": self._ready,
            "overlay": overlay.__version__,
            "sglang": {"version": self._plan.version.text, "path": self._plan.sglang_path},
            "platform": self._plan.platform.to_json(),
            "plan": self._plan.digest,
            "overrides": self._plan.overrides.to_json(),
            "packs": self._plan.packs_to_json(),
            "strict": self._strict,
            "patches": [
                {"id": i, "state": s.value, "reason": r, **self._measurement(i)} for i, (s, r) in self._states.items()
            ],
            "guarded": self._guarded,
            "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _measurement(self, patch_id: str) -> dict[str, object]:
        """JSON has no infinity: it is the largest number there is, as jq has it."""
        if patch_id not in self._worst:
            return {}
        worst = self._worst[patch_id]
        bound = {"of": worst.bound.name, "measure": worst.bound.measure.__name__, "limit": worst.bound.limit}
        return {"worst_error": min(worst.error, sys.float_info.max), "bound": bound}
