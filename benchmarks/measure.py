"""Runs the cases of a suite: every implementation on the same inputs, compared first and timed then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from benchmarks.case import AbsentError, Case, Group, Maker
from benchmarks.machine import Timer
from benchmarks.results import CaseResult, GroupResult, Machine, Result, Timing

#: Time of a copy that moves so many bytes.
CopyTimer = Callable[[int], Timing]


def measure_group(
    group: Group, timer: Timer, copy: CopyTimer, machine: Machine, without: Collection[str] = ()
) -> GroupResult:
    """Raises whatever our own implementation raises; another that fails is reported as absent, with its error.

    Implementations that `without` names are left out, unless they are ours.
    """
    cases = tuple(measure_case(case, timer, copy, machine, without) for case in group.cases)
    return GroupResult(group.suite, group.title, group.axes, cases)


def measure_case(
    case: Case, timer: Timer, copy: CopyTimer, machine: Machine, without: Collection[str] = ()
) -> CaseResult:
    results, absent = [], {}
    for number, (name, maker) in enumerate(case.makers().items()):
        if number and name in without:
            absent[name] = "left out by --without"
            continue
        outcome = _measure(name, maker, timer, must=number == 0)
        if isinstance(outcome, Result):
            results.append(outcome)
        else:
            absent[name] = outcome
    return CaseResult(
        label=case.label,
        parameters=case.parameters,
        bytes_moved=case.bytes_moved,
        operations=case.operations,
        copy=copy(case.bytes_moved),
        floor=floor(case.bytes_moved, case.operations, machine),
        results=tuple(results),
        absent=absent,
    )


def floor(bytes_moved: int, operations: int, machine: Machine) -> float:
    """Microseconds that no implementation can undercut, unless its inputs are cached."""
    seconds = max(bytes_moved / machine.copy_bytes_per_second, operations / machine.operations_per_second)
    return seconds * 1e6


def _measure(name: str, maker: Maker, timer: Timer, *, must: bool) -> Result | str:
    """A result, or why there is none."""
    try:
        prepared = maker()
        return Result(name, timer(prepared.call), prepared.errors)
    except Exception as error:  # a foreign kernel may fail in any way, and the others are still of interest
        if must:
            raise
        return str(error) if isinstance(error, AbsentError) else f"failed: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


def worst_errors(group: GroupResult) -> Mapping[str, Mapping[str, float]]:
    """Each implementation's largest error over the cases, by measure."""
    worst: dict[str, dict[str, float]] = {}
    for case in group.cases:
        for result in case.results:
            mine = worst.setdefault(result.implementation, {})
            for measure, value in result.errors.items():
                mine[measure] = max(value, mine.get(measure, 0.0))
    return worst
