"""What one process knows of itself, and its status file."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import overlay
from overlay import status
from overlay.model import State
from overlay.plan import Plan
from overlay.say import say


class ProcessReport:
    """The states of the patches in this process and the role it plays; every change is written at once."""

    def __init__(self, plan: Plan, run_dir: Path | None, *, strict: bool) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._strict = strict
        self._states = {d.patch.id: (d.state, d.reason) for d in plan.decisions}
        self._role, self._ready = "starting", False
        self._ranks: dict[str, int] = {}

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

    def identify(self, role: str, ranks: dict[str, int], *, ready: bool) -> None:
        """This process turns out to play a role."""
        self._role, self._ranks, self._ready = role, ranks, ready
        self.write()

    def write(self) -> None:
        """Put the status file in place. A failure is said once and does not stop serving."""
        if self._run_dir is None:
            return
        try:
            status.write(self._run_dir, f"{os.getpid()}.json", self._document())
        except OSError as error:
            say(f"cannot write the status of pid {os.getpid()} to {self._run_dir}: {error.strerror}")
            self._run_dir = None

    def _document(self) -> dict[str, object]:
        pid = os.getpid()
        return {
            "schema": status.SCHEMA,
            "pid": pid,
            "ppid": os.getppid(),
            "started": status.started(pid),
            "role": self._role,
            "ranks": self._ranks,
            "ready": self._ready,
            "overlay": overlay.__version__,
            "sglang": {"version": self._plan.version.text, "path": self._plan.sglang_path},
            "platform": self._plan.platform.to_json(),
            "plan": self._plan.digest,
            "overrides": self._plan.overrides.to_json(),
            "strict": self._strict,
            "patches": [{"id": i, "state": s.value, "reason": r} for i, (s, r) in self._states.items()],
            "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
