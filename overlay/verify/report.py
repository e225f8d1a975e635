"""What was found, as text for a terminal and as JSON. Formatting only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from overlay.denylist import Entry
from overlay.render import table
from overlay.verify.outcome import Device, Outcome, Result

SCHEMA = 1
#: Blocks of the bar for the time of what is replaced, and the longest bar.
_UNIT, _LONGEST = 4, 40


def to_json(results: Sequence[Result], sizes: str, device: Device, denied: Sequence[Entry]) -> dict[str, object]:
    """The stable form that `--json` prints."""
    return {
        "schema": SCHEMA,
        "device": {
            "name": device.name,
            "arch": device.arch,
            "interpreted": device.interpreted,
            "versions": dict(device.versions),
        },
        "shapes": sizes,
        "patches": [
            {
                "id": result.patch.id,
                "state": result.state,
                "problem": result.problem,
                "cases": [_outcome_to_json(outcome) for outcome in result.outcomes],
            }
            for result in results
        ],
        "denied": [entry.patch for entry in denied],
    }


def _outcome_to_json(outcome: Outcome) -> dict[str, object]:
    return {
        "case": outcome.label,
        "kernel": outcome.kernel,
        "taken": outcome.taken,
        "failure": outcome.failure,
        "bound_used": outcome.share,
        "graph": outcome.graph,
        "timing": outcome.timing,
        "microseconds": outcome.microseconds,
        "replaced_microseconds": outcome.replaced_microseconds,
        "ratio": outcome.ratio,
    }


def head(sizes: str, device: Device) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    return f"{device.name} ({device.arch}) | {versions} | sizes of {sizes}"


def block(result: Result) -> str:
    """One patch: a sentence, and a table of its cases."""
    run = [outcome for outcome in result.outcomes if outcome.taken]
    said = {
        "passed": f"all {len(run)} cases within their bounds",
        "failed": f"{len(result.failures)} of {len(run)} cases failed",
        "not run": str(result.problem),
        "no case": "the patch hands none of these shapes to its kernel"
        if result.outcomes
        else "the model of these sizes does not reach the kernel, or its backend is switched off",
    }[result.state]
    lines = [f"{result.patch.id}: {result.state}: {said}"]
    if result.outcomes:
        rows = [_row(outcome) for outcome in result.outcomes]
        lines.append(table(("CASE", "KERNEL", "BOUND USED", "GRAPH", "TIME", "REPLACED", "RESULT"), rows))
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    share = "" if outcome.share is None else f"{outcome.share:.0%}"
    times = [f"{t:.2f} us" if t is not None else "" for t in (outcome.microseconds, outcome.replaced_microseconds)]
    return (outcome.label, outcome.kernel, share, outcome.graph, times[0] or outcome.timing, times[1], _result(outcome))


def _result(outcome: Outcome) -> str:
    if not outcome.taken:
        return "not taken: the release's own code runs for this shape"
    if outcome.failure is not None:
        return f"FAILED: {outcome.failure}"
    return f"x{outcome.ratio:.2f} {_bar(outcome.ratio)}" if outcome.ratio is not None else "ok"


def _bar(ratio: float) -> str:
    """The speed as a bar, in which what is replaced would end at the mark."""
    length = min(round(ratio * _UNIT), _LONGEST)
    return "█" * min(length, _UNIT) + ("░" * (_UNIT - length) + "|" + "█" * (length - _UNIT))


def closing(results: Sequence[Result], denied: Sequence[Entry], before: Sequence[Entry], path: Path) -> Iterator[str]:
    """What to know at the end. `before` are the entries of this device that the file held already."""
    for entry in denied:
        yield f"{entry.patch} is denied on {entry.where} from now on: no launch here applies it. Written to {path}."
    passed = {result.patch.id for result in results if result.state == "passed"}
    for entry in before:
        if entry.patch in passed:
            yield (
                f"{entry.patch} has passed, and is still denied since {entry.found[:10]}: "
                f"`amd-sglang verify --clear {entry.patch}` lifts it."
            )
    slower = [o.label for result in results for o in result.outcomes if o.ratio is not None and o.ratio < 1]
    if slower:
        yield f"slower than what they replace, though right: {', '.join(slower)}."
