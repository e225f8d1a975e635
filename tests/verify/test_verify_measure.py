"""What one case shows of a kernel, with kernels made of torch operations that are wrong in every way on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from overlay.bound import Bound, mismatches, ulps
from overlay.verify import shapes, worker
from overlay.verify.case import Case, Draw, Expected, Tensors, within
from overlay.verify.measure import measure
from overlay.verify.poison import poison, poisoned, untouched
from tests.unit.engine_support import PATCH

CPU = torch.device("cpu")


def doubled(x: Tensor, _cache: Tensor | None = None) -> tuple[Tensor, ...]:
    out = torch.empty_like(x)
    out.copy_(2 * x)
    return (out,)


def case(fused: Callable[..., Sequence[Tensor]], **changed: object) -> Case:
    """Twice a vector of eight float16, exactly."""

    def expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        assert given[0] is not None
        return [Expected(Bound("y", 0, mismatches), 2 * given[0])]

    made = Case(
        "8 float16", "triton", lambda draw: (draw.normal(8, dtype=torch.float16),), lambda *_: True, fused, doubled,
        expected,
    )  # fmt: skip
    return replace(made, **changed)  # type: ignore[arg-type]


def all_but_one(x: Tensor) -> tuple[Tensor]:
    out = torch.empty_like(x)
    out[:-1] = 2 * x[:-1]
    return (out,)


def one_wrong(x: Tensor) -> tuple[Tensor]:
    (out,) = doubled(x)
    out[3] += 1
    return (out,)


def reading_new_memory(x: Tensor) -> tuple[Tensor]:
    """Right wherever the allocator happens to return zeros."""
    return (2 * x + torch.empty_like(x) * 0,)


def raising(x: Tensor) -> tuple[Tensor]:
    raise RuntimeError("no kernel image for this GPU")


def too_many(x: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x, x


def of_another_shape(x: Tensor) -> tuple[Tensor]:
    return (2 * x[:4],)


def test_a_kernel_that_keeps_its_promise() -> None:
    outcome = measure(case(doubled), CPU)
    assert (outcome.failure, outcome.share, outcome.taken) == (None, 0.0, True)
    assert (outcome.graph, outcome.timing) == ("not captured: no graphs", "not timed: interpreter")
    assert outcome.ratio is None


@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (all_but_one, "y is off by 1 (mismatches), bound 0; 1 elements are NaN or were never written"),
        (one_wrong, "y is off by 1 (mismatches), bound 0"),
        (reading_new_memory, "y is off by 8 (mismatches), bound 0; 8 elements are NaN or were never written"),
        (raising, "RuntimeError: no kernel image for this GPU"),
        (too_many, "ValueError: zip()"),
        (of_another_shape, "y is off by inf (mismatches), bound 0"),
    ],
)
def test_a_kernel_that_does_not(fused: Callable[..., Sequence[Tensor]], said: str) -> None:
    outcome = measure(case(fused), CPU)
    assert outcome.failure is not None
    assert outcome.failure.startswith(said)


def test_what_a_kernel_writes_in_place_is_judged_by_its_inputs_before() -> None:
    def in_place(x: Tensor) -> tuple[Tensor]:
        return (x.mul_(2),)

    assert measure(case(in_place), CPU).failure is None


def test_an_integer_that_was_never_written_shows() -> None:
    def expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        assert given[0] is not None
        return [Expected(Bound("a token", 0, mismatches), torch.zeros(8, dtype=torch.int64))]

    def nothing(x: Tensor) -> tuple[Tensor]:
        return (torch.empty(8, dtype=torch.int64),)

    failure = measure(case(nothing, expected=expected), CPU).failure
    assert failure == "a token is off by 8 (mismatches), bound 0; 8 elements are NaN or were never written"


def test_a_shape_that_the_patch_leaves_to_the_release_is_not_run() -> None:
    outcome = measure(case(raising, takes=lambda *_: False), CPU)
    assert (outcome.taken, outcome.failure) == (False, None)


def test_a_rule_that_fails_is_a_failure_of_the_kernel() -> None:
    """Such as aiter's, which compares the op with ours before it is first used."""
    assert measure(case(doubled, takes=raising), CPU).failure == "RuntimeError: no kernel image for this GPU"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64])
def test_new_memory_is_poisoned_within_and_nowhere_else(dtype: torch.dtype) -> None:
    like = torch.zeros(64, dtype=dtype)
    with poisoned(CPU):
        made = [torch.empty(64, dtype=dtype), torch.empty_like(like), like.new_empty(64)]
    assert all(bool(untouched(one).all()) for one in made)
    assert not torch.are_deterministic_algorithms_enabled()
    poison(like)
    assert bool(untouched(like).all())


def test_tolerances_of_single_elements() -> None:
    want = torch.tensor([1.0, float("nan"), float("inf"), 0.0], dtype=torch.float64)
    measured = within("y", want, torch.tensor([0.5, 0.0, 0.0, 0.0])).bound
    assert measured.error(torch.tensor([1.25, float("nan"), float("inf"), 0.0]), want).share == 0.5
    for got in ([1.6, float("nan"), float("inf"), 0.0], [1.0, 2.0, float("inf"), 0.0], [1.0, float("nan"), 3.0, 0.0]):
        assert not measured.error(torch.tensor(got), want).within
    assert not measured.error(torch.tensor([float("nan")] * 4), want).within
    assert not measured.error(torch.ones(3), want).within


def test_the_same_seed_draws_the_same() -> None:
    draws = [Draw(CPU, seed) for seed in (5, 5, 6)]
    first, again, other = (
        torch.cat([d.normal(4), d.uniform(4), d.integers(0, 99, 4).float(), d.distinct(4, 50).float()]) for d in draws
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def told(monkeypatch: pytest.MonkeyPatch, *cases: Case | Exception) -> list[dict[str, object]]:
    """What the worker tells of a patch with these cases; an exception is raised where it stands."""

    def yielding(_shapes: shapes.Shapes) -> Iterator[Case]:
        for one in cases:
            if isinstance(one, Exception):
                raise one
            yield one

    events: list[dict[str, object]] = []
    monkeypatch.setattr(worker, "named_cases", yielding, raising=False)
    patch = replace(PATCH, kernels="overlay.verify.worker:named_cases")
    worker.verify(patch, shapes.tiny(), CPU, lambda what, **facts: events.append({"what": what, **facts}))
    return events


def test_a_worker_tells_what_it_is_about_to_do_and_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events = told(monkeypatch, case(doubled), case(one_wrong), case(raising))
    assert [event["what"] for event in events] == [*("case", "outcome") * 3, "done"]
    assert events[0]["label"] == "8 float16"
    assert [event["failure"] for event in events if event["what"] == "outcome"] == [
        None, "y is off by 1 (mismatches), bound 0", "RuntimeError: no kernel image for this GPU",
    ]  # fmt: skip


def test_cases_that_cannot_be_made_are_a_problem_and_no_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    events = told(monkeypatch, case(doubled), RuntimeError("this aiter has no such op"))
    assert [event["what"] for event in events] == ["case", "outcome", "problem", "done"]
    assert events[2]["why"] == "RuntimeError: this aiter has no such op"


def test_an_element_at_its_bound_passes_and_one_beyond_fails() -> None:
    def expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        assert given[0] is not None
        return [Expected(Bound("y", 1, ulps), 2 * given[0])]

    def off_by(units: int) -> Callable[[Tensor], tuple[Tensor]]:
        return lambda x: ((2 * x).view(torch.int16).add(units).view(torch.float16),)

    assert measure(case(off_by(1), expected=expected), CPU).share == 1.0
    assert measure(case(off_by(2), expected=expected), CPU).failure == "y is off by 2 (ulps), bound 1"
