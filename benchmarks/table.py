"""Results as Markdown."""

from __future__ import annotations

from benchmarks.measure import worst_errors
from benchmarks.results import CaseResult, GroupResult, Machine, Report


def headline(report: Report) -> str:
    """One line that says where it was measured."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.gpu} ({machine.architecture}), {versions}; caches {report.cache}; {rates(machine)}"


def rates(machine: Machine) -> str:
    return (
        f"copy of 1 GiB {machine.copy_bytes_per_second / 1e12:.2f} TB/s, "
        f"bf16 product {machine.operations_per_second / 1e12:.0f} TFLOP/s"
    )


def group_lines(group: GroupResult) -> list[str]:
    """Title, times, errors, and who is missing."""
    lines = [f"## {group.title}", "", *_times(group), "", _spread(group), "", *_errors(group)]
    missing = _missing(group)
    return [*lines, "", *missing] if missing else lines


def _times(group: GroupResult) -> list[str]:
    """Microseconds. The last columns rate ours: a copy of as many bytes over it, and the floor over it."""
    names = group.implementations
    heads = [group.axes, *names, "copy", "floor", "copy / ours", "floor / ours"]
    return [_row(heads), _row(["---"] * len(heads)), *(_row(_cells(case, names)) for case in group.cases)]


def _cells(case: CaseResult, names: list[str]) -> list[str]:
    found = [case.of(name) for name in names]
    times = ["-" if result is None else f"{result.timing.median:.2f}" for result in found]
    ours = case.ours.timing.median
    rated = [f"{limit / ours:.0%}" for limit in (case.copy.median, case.floor)]
    return [case.label, *times, f"{case.copy.median:.2f}", f"{case.floor:.2f}", *rated]


def _spread(group: GroupResult) -> str:
    results = [(result, case.label) for case in group.cases for result in case.results]
    worst, label = max(results, key=lambda pair: pair[0].timing.spread)
    return (
        "microseconds, median of graph replays; from the 10th to the 90th percentile at most "
        f"{worst.timing.spread:.1%} ({worst.implementation} at {label})"
    )


def _errors(group: GroupResult) -> list[str]:
    worst = worst_errors(group)
    measures = list(dict.fromkeys(measure for errors in worst.values() for measure in errors))
    heads = ["worst of all sizes", *measures]
    rows = [
        [name, *(f"{errors[measure]:.2e}" if measure in errors else "-" for measure in measures)]
        for name, errors in worst.items()
    ]
    return [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)]


def _missing(group: GroupResult) -> list[str]:
    """One line per implementation and reason; the sizes are named unless it is all of them."""
    lines = []
    for name, reasons in group.absent.items():
        for reason, labels in reasons.items():
            where = "" if len(labels) == len(group.cases) else f" at {'; '.join(labels)}"
            lines.append(f"- not timed{where}: {name}: {reason}")
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
