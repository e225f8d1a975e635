"""What a process of a server asks about the others before it serves: are they patched as it is?"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from overlay import ranks, status
from overlay.agreement import Account, account, difference, title
from overlay.model import State
from overlay.plan import Plan
from overlay.say import say

#: Seconds for the ranks to give their accounts once sglang has connected them, which was a meeting of all.
CONNECTED_PATIENCE = 60.0
#: Seconds until every rank is built. Pipeline stages load their weights apart from each other, so this is torch's own
#: patience with a collective (torch/distributed/constants.py, default_pg_timeout).
READY_PATIENCE = 1800.0

_CONNECTED, _READY = "connected", "ready"


class Peers:
    """The other ranks of this process's server. Every question is answered by an objection to serving, or None; `named`
    are the ranks that sglang gave to this process, such as {"dp": 1, "tp": 0}."""

    def __init__(
        self, plan: Plan, state: Callable[[str], tuple[State, str]], announced: str | None, run_dir: Path | None
    ) -> None:
        self._plan = plan
        self._state = state
        self._announced = announced
        self._run_dir = run_dir

    def connected(self, named: Mapping[str, int]) -> str | None:
        """torch.distributed is up and no weight is loaded: would all ranks patch alike?"""
        world = ranks.world()
        return None if world is None else world.compare(_CONNECTED, self._account(named), CONNECTED_PATIENCE)

    def ready(self, named: Mapping[str, int]) -> str | None:
        """This scheduler is built: is every rank patched as planned, and every replica?"""
        world = ranks.world()
        if world is not None:
            objection = world.compare(_READY, self._account(named), READY_PATIENCE)
            if objection is not None:
                return objection
            if world.rank == 0:
                say(f"{world.size} ranks agree on plan {self._plan.digest}")
        return self._replicas() if "dp" in named else None

    def leaving(self, why: str) -> None:
        """This process ends before it serves: who waits for it should hear why."""
        world = ranks.world()
        if world is not None:
            world.tell(_READY, self._account({}, ends=why))

    def _replicas(self) -> str | None:
        """Data-parallel replicas are worlds of their own, without a group in common. Each is held to the plan that the
        launcher announced to all, and compared with those that were ready before it: they are processes of one host,
        below one controller, and of any two the later has read the status of the earlier."""
        if self._announced not in (None, self._plan.digest):
            return f"this replica plans {self._plan.digest}, the launcher announced {self._announced} to all of them"
        if self._run_dir is None:
            return None
        rows: list[Any] = status.read_run(self._run_dir)
        built = [row for row in rows if row.get("role") == "scheduler" and row["ready"]]
        siblings = {title(row["ranks"]): row for row in built if row["alive"] and row["ppid"] == os.getppid()}
        return difference({name: Account.of_status(siblings[name]) for name in sorted(siblings)}, 0)

    def _account(self, named: Mapping[str, int], ends: str = "") -> Account:
        place = [title(named), f"pid {os.getpid()} on {socket.gethostname()}"]
        return account(", ".join(filter(None, place)), self._plan, self._state, ends=ends)
