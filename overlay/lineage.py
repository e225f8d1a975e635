"""Who waits for a process of a server that leaves under `--strict`, and would never notice that it is gone.

sglang's children tell of an Exception alone, by SIGQUIT to their parent (run_scheduler_process, scheduler.py:3191,
0.5.9); `--strict` leaves through SystemExit. A server that starts sees a child of its own go, since the pipe between
them ends. A data-parallel controller does not: it keeps the writing end of that pipe, or reads it in a thread, which
dies alone (launch_tensor_parallel_group, data_parallel_controller.py:501, 0.5.9; alike through 0.5.23). And no server
looks after its children while it serves before 0.5.10.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

_CONTROLLER = "sglang::data_parallel_controller"


def title(pid: int) -> str:
    """What a process calls itself, as `ps` shows it; empty where there is no telling."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third one, the state, on (proc(5)); None if there is no such process."""
    try:
        # The second field is a name in parentheses, and may hold blanks and parentheses itself.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def tell_who_waits(*, serving: bool) -> None:
    """Let nobody wait for this process, which is about to leave. `serving`: it is a scheduler that was built.

    While the server starts, a controller above this process is ended, with all below it: the server sees the pipe of
    the controller end, and ends as it does without one. A server that serves gets the signal that sglang's children
    send, and its handler ends the whole tree.
    """
    if serving:
        _signal(_server(), signal.SIGQUIT)
    elif (controller := _controller()) is not None:
        # Not left to the schedulers: they ask to be killed with their parent once they are imported (scheduler.py:3101,
        # 0.5.9). One that is not so far would outlive it, outside of the tree that the server ends.
        for pid in _children(controller) - {os.getpid()}:
            _signal(pid, signal.SIGKILL)
        _signal(controller, signal.SIGQUIT)


def _controller() -> int | None:
    """The controller above this process, or this very process: its threads would keep it when its main thread ends."""
    return next((pid for pid in (os.getppid(), os.getpid()) if title(pid) == _CONTROLLER), None)


def _server() -> int | None:
    """The server above this scheduler. An actor of Ray's has Ray's daemon for its parent, and Ray tells the driver."""
    if "sglang.srt.ray.scheduler_actor" in sys.modules:
        return None
    parent = os.getppid()
    return _parent(parent) if title(parent) == _CONTROLLER else parent


def _children(parent: int) -> set[int]:
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return {pid for pid in pids if _parent(pid) == parent}


def _parent(pid: int) -> int | None:
    fields = stat(pid)
    return None if fields is None else int(fields[1])


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)
