"""Runs the program that measures, and makes results of what it tells, also where a kernel ends it. Loads no torch."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from overlay.errors import OverlayError
from overlay.model import Patch
from overlay.registry import Registry
from overlay.verify.outcome import Device, Outcome, Result
from overlay.verify.request import Request

_WORKER = (sys.executable, "-m", "overlay.verify.worker")
#: How long one case may take, in seconds: a kernel is compiled in some, and interpreted in a minute.
PATIENCE = 600.0


class Supervisor:
    """The workers of one request, and what they said of where they ran."""

    def __init__(self, registry: Registry, command: Sequence[str] = _WORKER, patience: float = PATIENCE) -> None:
        self.device = Device("", "", False)
        self.sizes = ""
        self._registry = registry
        self._command = tuple(command)
        self._patience = patience

    def results(self, request: Request, *, together: bool) -> Iterator[Result]:
        """One after the other. Unless `together`, every patch has a process of its own, so that a kernel that takes the
        GPU, or the process, along with it is the only one to be blamed. Raises OverlayError of the worker's."""
        for ids in [request.ids] if together else [(one,) for one in request.ids]:
            yield from self._worker(replace(request, ids=ids))

    def _worker(self, request: Request) -> Iterator[Result]:
        left = [self._registry.get(one, "the request") for one in request.ids]
        at = _Progress()
        with subprocess.Popen([*self._command, request.arguments()[-1]], stdout=subprocess.PIPE) as process:
            try:
                for event in self._events(process):
                    what = event.pop("what")
                    if what == "error":
                        raise OverlayError(event["why"])
                    if what == "device":
                        self.sizes, self.device = event.pop("sizes"), Device(**event)
                    elif what == "done":
                        yield at.result(left.pop(0))
                        at = _Progress()
                    else:
                        at.hear(what, event)
                why = _ended(process.wait())
            except TimeoutError:
                why = f"nothing came of it in {self._patience:.0f} s"
            finally:
                process.kill()
        if left and not self.device.name:
            raise OverlayError(f"nothing could be measured: {why}. What it said is above.")
        if left:
            at.broke_off(why)
            yield at.result(left.pop(0))
        yield from (Result(patch, problem=f"not reached: {why}") for patch in left)

    def _events(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        """What a worker tells. Raises TimeoutError if it is silent for too long."""
        assert process.stdout is not None
        text = b""
        while True:
            if not select.select([process.stdout], [], [], self._patience)[0]:
                raise TimeoutError
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                return
            *lines, text = (text + read).split(b"\n")
            yield from map(json.loads, lines)


@dataclass
class _Progress:
    """What a worker has told of the patch that it is at; `case` is the one under way."""

    outcomes: list[Outcome] = field(default_factory=list)
    problem: str | None = None
    case: Outcome | None = None

    def hear(self, what: str, facts: dict[str, Any]) -> None:
        if what == "case":
            self.case = Outcome(**facts)
        elif what == "outcome":
            self.outcomes.append(Outcome(**facts))
            self.case = None
        elif what == "problem":
            self.problem = facts["why"]

    def broke_off(self, why: str) -> None:
        """The kernel under way is to blame; between two of them none is."""
        if self.case is None:
            self.problem = why
        else:
            self.outcomes.append(replace(self.case, failure=why))

    def result(self, patch: Patch) -> Result:
        return Result(patch, tuple(self.outcomes), self.problem)


def _ended(status: int) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"
