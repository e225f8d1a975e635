"""What was measured, as it is printed, plotted and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median of the replays, and their tenth and ninetieth percentiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Width between the percentiles as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Result:
    """One implementation at one size."""

    implementation: str
    timing: Timing
    errors: Mapping[str, float]


@dataclass(frozen=True)
class CaseResult:
    """One size: who was timed, who was not and why, and what the machine could do."""

    label: str
    parameters: Mapping[str, int | str]
    bytes_moved: int
    operations: int
    copy: Timing
    """a copy on the device that moves as many bytes, half of them read and half written"""
    floor: float
    """microseconds: the bytes at the rate of a large copy, or the operations at that of a large product, if longer"""
    results: tuple[Result, ...]
    absent: Mapping[str, str]

    def of(self, implementation: str) -> Result | None:
        return next((result for result in self.results if result.implementation == implementation), None)

    @property
    def ours(self) -> Result:
        return self.results[0]


@dataclass(frozen=True)
class GroupResult:
    """The sizes of one table; every implementation that ran at any of them, in order of appearance, ours first."""

    suite: str
    title: str
    axes: str
    cases: tuple[CaseResult, ...]

    @property
    def implementations(self) -> list[str]:
        return list(dict.fromkeys(result.implementation for case in self.cases for result in case.results))

    @property
    def absent(self) -> dict[str, dict[str, list[str]]]:
        """Implementation, then reason, then the labels of the cases."""
        found: dict[str, dict[str, list[str]]] = {}
        for case in self.cases:
            for name, reason in case.absent.items():
                found.setdefault(name, {}).setdefault(reason, []).append(case.label)
        return found


@dataclass(frozen=True)
class Machine:
    """Where it was measured, and what this GPU reached in the same run."""

    gpu: str
    architecture: str
    compute_units: int
    l2_bytes: int
    memory_bytes: int
    versions: Mapping[str, str]
    copy_bytes_per_second: float
    """of 1 GiB, bytes read and bytes written"""
    operations_per_second: float
    """of a bfloat16 product of two 8192 x 8192 matrices"""


@dataclass(frozen=True)
class Report:
    """One run."""

    date: str
    cache: str
    """"warm" or "cold", see `benchmarks.timing`"""
    machine: Machine
    groups: tuple[GroupResult, ...]
