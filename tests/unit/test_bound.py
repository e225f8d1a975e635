"""The measures of an error: what counts, what does not, and what is infinitely wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from overlay import bound
from overlay.bound import Bound, absolute, mismatches, row_eps, ulps, worst

if TYPE_CHECKING:
    from overlay.bound import Measure

INF, NAN = math.inf, math.nan
MEASURES = [mismatches, ulps, absolute, row_eps]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def t(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_same_is_no_error(measure: Measure, dtype: torch.dtype) -> None:
    values = t(1.5, -0.0, INF, -INF, NAN, 0.0, dtype=dtype)
    assert measure(values, values.clone()) == 0
    assert measure(values[:0], values[:0]) == 0
    assert measure(values.expand(3, 6), values.repeat(3, 1)) == 0


@pytest.mark.parametrize("measure", [ulps, absolute, row_eps])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_in_one_of_the_two_is_infinite(measure: Measure, dtype: torch.dtype) -> None:
    fine, broken = t(1, 2, dtype=dtype), t(1, NAN, dtype=dtype)
    assert measure(broken, fine) == measure(fine, broken) == INF


@pytest.mark.parametrize("measure", MEASURES)
def test_another_shape_is_infinite(measure: Measure) -> None:
    assert measure(torch.ones(2, 1), torch.ones(2)) == INF


@pytest.mark.parametrize("measure", [mismatches, ulps])
def test_another_dtype_is_infinite_where_bits_count(measure: Measure) -> None:
    assert measure(torch.ones(2), torch.ones(2).bfloat16()) == INF


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulps_are_values_of_the_dtype(dtype: torch.dtype) -> None:
    one, up = t(1.0, dtype=dtype), torch.tensor(INF, dtype=dtype)
    above = torch.nextafter(one, up)
    assert ulps(above, one) == 1 and ulps(torch.nextafter(above, up), one) == 2
    assert ulps(-above, -one) == 1
    smallest = torch.nextafter(t(0.0, dtype=dtype), up)
    assert ulps(smallest, -smallest) == 2 and ulps(t(0.0, dtype=dtype), t(-0.0, dtype=dtype)) == 0
    assert ulps(t(0.0, 5, dtype=dtype), torch.cat([smallest, t(5, dtype=dtype)])) == 1


def test_the_whole_range_of_float32_does_not_overflow() -> None:
    assert ulps(t(INF), t(-INF)) == 2 * 0x7F800000


def test_mismatches_are_counted_by_bits() -> None:
    assert mismatches(t(1, 2, NAN, 0.0), t(1, 3, 1, -0.0)) == 3
    assert mismatches(torch.tensor([1, 2]).int(), torch.tensor([1, 3])) == 1
    assert mismatches(torch.tensor([1]), t(1)) == INF


def test_absolute() -> None:
    assert absolute(t(1, 2.5), t(1, 2)) == 0.5
    assert absolute(t(INF), t(1)) == absolute(t(INF), t(-INF)) == INF


def test_row_eps_counts_from_the_largest_of_the_row() -> None:
    want = torch.tensor([[1.0, 1024.0], [1.0, 0.0]]).bfloat16()
    got = want.clone()
    got[0, 0] += 8
    eps = torch.finfo(torch.bfloat16).eps
    assert row_eps(got, want) == 8 / 1024 / eps
    got[1, 1] += 8
    assert row_eps(got, want) == 8 / eps
    assert row_eps(t(1.0), t(0.0)) == INF
    assert row_eps(t(INF, 1), t(INF, 2)) == 0.5 / torch.finfo(torch.float32).eps, "an infinity hides nothing"


@pytest.mark.parametrize("shape", [(7, 3), (1, 50), (50,), (2, 5, 3), ()])
def test_large_tensors_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(bound, "_PIECE", 7)
    want = torch.randn(shape)
    for at in range(want.numel()):
        got = want.clone()
        got.view(-1)[at] += 1
        assert [mismatches(got, want), absolute(got, want)] == [1, pytest.approx(1)]
        assert ulps(got, want) > 0 and row_eps(got, want) > 0


def test_the_worst_is_the_one_that_uses_up_most_of_its_bound() -> None:
    loose, tight, exact = Bound("loose", 10, absolute), Bound("tight", 1e-3, absolute), Bound("exact", 0, mismatches)
    zero, small = t(0.0), t(0.0005)
    found = worst([(loose, t(1.0), zero), (tight, small, zero), (exact, zero, zero)])
    assert found.bound is tight and found.within and found.share == pytest.approx(0.5)
    broken = worst([(loose, t(9.0), zero), (exact, small, zero)])
    assert (broken.bound, broken.error, broken.within, broken.share) == (exact, 1, False, INF)
    assert str(broken) == "exact is off by 1 (mismatches), bound 0"
    assert not worst([(loose, t(NAN), zero)]).within
