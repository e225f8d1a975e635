"""Oracle for Gemma RMSNorm, and the distance that its bound is stated in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Expected(NamedTuple):
    y: Tensor
    """float64"""
    total: Tensor | None
    """the residual output; None without a residual"""


def expected(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, post: Tensor | None) -> Expected:
    """The norm of the sum that ``torch.add`` rounds, in float64."""
    total = None
    if residual is not None:
        total = torch.add(x, residual if post is None else torch.add(residual, post))
    wide = (x if total is None else total).to(torch.float64)
    root_mean_square = torch.sqrt(torch.sum(wide * wide, dim=-1, keepdim=True) / x.shape[-1] + eps)
    return Expected((wide / root_mean_square) * (1.0 + weight.to(torch.float64)), total)


def ulps_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many values of their 16-bit dtype lie between ``a`` and ``b``, element by element; -0 and +0 are one."""

    def position(t: Tensor) -> Tensor:
        bits = t.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -32768 - bits, bits)

    assert not bool(torch.isnan(a).any() | torch.isnan(b).any()), "NaN has no place in the order"
    return (position(a) - position(b)).abs()


def assert_close(y: Tensor, want: Tensor) -> None:
    """At most 1 ulp anywhere, and off at all in about 1 % of the elements or fewer.

    float32 arithmetic that rounds once moves an element only when the exact value lies next to a tie, well below 1 %
    of them; a sum or a ``1 + weight`` that is rounded elsewhere moves 20 to 40 %.
    """
    assert y.shape == want.shape
    distance = ulps_apart(y, want.to(y.dtype))
    if y.numel():
        assert int(distance.max()) <= 1
        assert int((distance > 0).sum()) <= 2 + y.numel() // 100
