"""The guard of a patch that runs a kernel: one failure, and upstream's own path serves the rest of the process.

A replacement reads `guard.on` before it takes its kernel, calls `guard.trip(error)` where that raises, and goes on to
upstream's path, for this call and every later one. The patch is not taken out: a bound method that somebody keeps holds
the replacement, and reads the flag. A graph captured before reads nothing: it replays the kernel that it captured.

It is off in this process alone. Other ranks keep their kernel: both ways keep the patch's bound, so ranks may differ by
as much, and as none of the calls that a kernel replaces is collective, none of them waits for another.

    if guard.on and supports(x):
        if torch.compiler.is_compiling():  # neither a counter nor a failure can be traced
            return kernel(x)
        if guard.shadow_runs and shadow.due(guard):
            return shadow.run(...)
        try:
            result = kernel(x)
        except Exception as error:
            guard.trip(error)
        else:
            guard.counts[CALLS] += 1
            return result
    elif guard.on and not torch.compiler.is_compiling():
        guard.counts[FALLBACKS] += 1
    return upstream(x)

An error that a GPU reports later, to whoever calls it next, cannot be attributed, and ends the server as ever.
"""

from __future__ import annotations

import os
import traceback
from typing import Protocol

from overlay import counters, gates
from overlay.bound import Measured
from overlay.counters import CALLS, FAILURES
from overlay.say import say

_LONGEST = 400
"""Characters of an error that the status shows: a compiler's can be pages long."""


class Keeper(Protocol):
    """Who keeps what the guards of this process have to say."""

    def counts(self, patch_id: str) -> memoryview:
        """Where a guard counts, from zero."""

    def failed(self, patch_id: str, reason: str) -> None:
        """A guard has switched its patch off, and nobody has said so. May raise SystemExit."""

    def measured(self, patch_id: str, error: Measured) -> None:
        """A shadow run has found the largest error so far."""


class Guard:
    """The guard of one patch in this process. `guard` makes it."""

    def __init__(self, patch_id: str, shadow_runs: int, counts: memoryview) -> None:
        self.patch_id = patch_id
        self.on = True
        """Whether the kernel may be taken."""
        self.shadow_runs = shadow_runs
        """How many of the next calls run both ways."""
        self.counts = counts
        """One number for each of `counters.FIELDS`. A fork replaces it: do not hold on to it."""
        self.worst: Measured | None = None
        self.retired = False
        """Whether it is off because its patch was taken out."""

    def trip(self, error: Exception) -> None:
        """The kernel failed: it is not tried again, which is said once. Makes no call to the GPU, so a stream may be
        capturing. Raises SystemExit where `--strict` forbids to go on."""
        self.counts[FAILURES] += 1
        if not self.on:
            return
        self.on = False
        if error.__traceback__ is not None:
            traceback.print_exception(error)
        captured = " (a graph captured before, if any, still replays the kernel)" if self.counts[CALLS] else ""
        _keeper.failed(self.patch_id, f"its kernel failed, upstream's path serves: {_spelt(error)}{captured}")

    def measure(self, measured: Measured) -> None:
        """A call that ran both ways was off by so much."""
        if self.worst is None or measured.share > self.worst.share:
            self.worst = measured
            _keeper.measured(self.patch_id, measured)


def _spelt(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class _Nobody:
    """Keeps nothing: where kernels run without the overlay, as in their tests."""

    def counts(self, _patch_id: str) -> memoryview:
        return counters.in_memory(1)

    def failed(self, patch_id: str, reason: str) -> None:
        say(f"{patch_id}: {reason}")

    def measured(self, patch_id: str, error: Measured) -> None:
        pass


_guards: dict[str, Guard] = {}
_keeper: Keeper = _Nobody()


def guard(patch_id: str) -> Guard:
    """The guard of a patch in this process. Raises MalformedSwitchError if AMD_SGLANG_SHADOW cannot be read."""
    if patch_id not in _guards:
        _guards[patch_id] = Guard(patch_id, gates.SHADOW.read(os.environ), _keeper.counts(patch_id))
    found = _guards[patch_id]
    if found.retired:  # the patch is put in again
        found.on, found.retired = True, False
    return found


def retire(patch_id: str) -> None:
    """A patch was taken out: what still holds its replacement, such as a method bound before, goes upstream's way."""
    if patch_id in _guards:
        _guards[patch_id].on, _guards[patch_id].retired = False, True


def keep(keeper: Keeper) -> None:
    """From now on `keeper` keeps what every guard has to say, which counts from zero. In a forked child the same
    keeper is to be named again: what it gave out before is the parent's."""
    global _keeper
    _keeper = keeper
    for each in _guards.values():
        each.counts = keeper.counts(each.patch_id)
