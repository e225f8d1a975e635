"""What came of verifying: on what, case by case, patch by patch. Data only, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from overlay.model import Patch


@dataclass(frozen=True)
class Device:
    """The GPU that was verified on. `arch` is the gfx name, or another vendor's name of the GPU. `interpreted` means
    that kernels ran in Triton's interpreter: no graph and no clock there says anything about a GPU."""

    name: str
    arch: str
    interpreted: bool
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of one case. `failure` is None for a kernel that keeps its promises.

    `share` is the part of its bound that the worst element uses up. Times are medians in microseconds, of replays of a
    graph, None where there is no clock; `graph` and `timing` say what was done instead.
    """

    label: str
    kernel: str
    failure: str | None = None
    taken: bool = True
    share: float | None = None
    graph: str = ""
    timing: str = ""
    microseconds: float | None = None
    replaced_microseconds: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many calls of the kernel fit into one of what it replaces."""
        if self.microseconds is None or self.replaced_microseconds is None:
            return None
        return self.replaced_microseconds / self.microseconds


@dataclass(frozen=True)
class Result:
    """One patch. `problem` says why its cases could not be run; no kernel of it was found wrong then."""

    patch: Patch
    outcomes: tuple[Outcome, ...] = ()
    problem: str | None = None

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.failure is not None)

    @property
    def state(self) -> str:
        """failed, not run, or passed; "no case" where no kernel of it would run."""
        if self.failures:
            return "failed"
        if self.problem is not None:
            return "not run"
        return "passed" if any(outcome.taken for outcome in self.outcomes) else "no case"
