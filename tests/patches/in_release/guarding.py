"""What holds of every patch that runs a kernel: a failure ends its use, and a shadow run sees each wrong result.

A file of checks makes a class of `GuardChecks` with a `subject`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from overlay import guard as guards
from overlay import runtime, status
from overlay.guard import Guard
from overlay.model import State

Function = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """One call of a patched method. `replace(monkeypatch, around)` puts `around(kernel)` in the place of the kernel,
    whose `outputs(arguments, result)` are all tensors that it makes."""

    patch_id: str
    call: Callable[[], tuple[Tensor, ...]]
    upstream: Callable[[], tuple[Tensor, ...]]
    replace: Callable[[pytest.MonkeyPatch, Callable[[Function], Function]], None]
    outputs: Callable[[tuple[Any, ...], Any], Sequence[Tensor]]
    methods: int = 1
    """How many patched methods one call runs."""


class GuardChecks:
    @pytest.fixture
    def guard(self, subject: Subject) -> Iterator[Guard]:
        found = guards.guard(subject.patch_id)
        renew(found)
        yield found
        renew(found)

    def test_a_kernel_that_fails_is_not_tried_again(
        self, subject: Subject, guard: Guard, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tried: list[bool] = []
        want = subject.upstream()
        subject.replace(monkeypatch, lambda _: failing(tried))
        for _ in range(2):
            assert same(subject.call(), want)
        assert len(tried) == 1
        state, reason = state_of(subject.patch_id)
        assert state is State.FAILED
        assert reason == "its kernel failed, upstream's path serves: RuntimeError: no such instruction"
        assert capfd.readouterr().err.count(f"{subject.patch_id} is failed: {reason}") == 1
        assert counters(subject) == {"calls": 0, "fallbacks": 0, "failures": 1, "shadowed": 0}

    def test_a_stream_that_captures_is_not_shadowed_and_may_see_a_failure(
        self, subject: Subject, guard: Guard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        guard.shadow_runs = 1
        subject.call()
        assert counters(subject)["shadowed"] == 0 and guard.shadow_runs == 1
        subject.replace(monkeypatch, lambda _: failing([]))
        assert same(subject.call(), subject.upstream())
        assert state_of(subject.patch_id)[0] is State.FAILED

    def test_a_right_kernel_is_shadowed_as_often_as_asked_and_stays(self, subject: Subject, guard: Guard) -> None:
        alone = subject.call()
        guard.shadow_runs = subject.methods
        assert same(subject.call(), alone) and same(subject.call(), alone)
        served = 3 * subject.methods
        assert counters(subject) == {"calls": served, "fallbacks": 0, "failures": 0, "shadowed": subject.methods}
        assert state_of(subject.patch_id)[0] is State.APPLIED
        assert guard.worst is not None and guard.worst.within
        worst = row(subject)["worst_error"]
        assert worst == guard.worst.error and row(subject)["bound"]["limit"] >= worst

    def test_a_shadow_run_sees_a_wrong_element_of_every_output(
        self, subject: Subject, guard: Guard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Tensor] = []
        with monkeypatch.context() as patch:
            subject.replace(patch, lambda kernel: spoiling(subject, kernel, seen.extend))
            subject.call()
        want = subject.upstream()
        for at in range(len(seen)):
            for value in wrong_values(seen[at]):
                renew(guard)
                guard.shadow_runs = subject.methods
                with monkeypatch.context() as patch:

                    def spoil(outputs: Sequence[Tensor], at: int = at, value: float = value) -> None:
                        outputs[at].view(-1)[-1] = value

                    subject.replace(patch, partial(spoiling, subject, spoil=spoil))
                    assert same(subject.call(), want), f"output {at} with {value} was served"
                state, reason = state_of(subject.patch_id)
                assert state is State.FAILED and "BeyondBoundError" in reason and "bound" in reason
                assert guard.worst is not None and not guard.worst.within
                assert counters(subject)["failures"] == 1 and row(subject)["worst_error"] > 0


def wrong_values(output: Tensor) -> tuple[float, ...]:
    """What the last element of an output of random inputs surely is not."""
    if output.is_floating_point():
        return float("nan"), 1e4
    return (8 if output.view(-1)[-1] == 7 else 7,)


def renew(guard: Guard) -> None:
    """As if the process had just started."""
    guard.on, guard.retired, guard.shadow_runs, guard.worst = True, False, 0, None
    for at in range(len(guard.counts)):
        guard.counts[at] = 0
    overlay = runtime.current()
    assert overlay is not None
    if overlay.state(guard.patch_id)[0] is State.FAILED:
        overlay._report.record(guard.patch_id, State.APPLIED, "renewed")


def failing(tried: list[bool]) -> Function:
    def fail(*_: object, **__: object) -> None:
        tried.append(True)
        raise RuntimeError("no such instruction")

    return fail


def spoiling(subject: Subject, kernel: Function, spoil: Callable[[Sequence[Tensor]], object]) -> Function:
    """The kernel, and what is done to its outputs afterwards."""

    def run(*arguments: Any, **options: Any) -> Any:
        result = kernel(*arguments, **options)
        spoil(subject.outputs(arguments, result))
        return result

    return run


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))


def state_of(patch_id: str) -> tuple[State, str]:
    overlay = runtime.current()
    assert overlay is not None
    return overlay.state(patch_id)


def row(subject: Subject) -> dict[str, Any]:
    """What the status of this process says of the patch."""
    (process,) = [one for one in status.read_runs(Path(os.environ["AMD_SGLANG_RUN_DIR"])) if one["pid"] == os.getpid()]
    (found,) = [one for one in cast(list[dict[str, Any]], process["patches"]) if one["id"] == subject.patch_id]
    return found


def counters(subject: Subject) -> dict[str, int]:
    found: dict[str, int] = row(subject)["counters"]
    return found
