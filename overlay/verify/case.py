"""What a kernel is verified by: one call of it, how its inputs are drawn, and what must come out. No torch is loaded.

`Patch.kernels` names a function of the overlay's `Shapes` that yields cases. An example is
`patches.proofs.gemma_rmsnorm`::

    def cases(shapes: Shapes) -> Iterator[Case]:
        yield Case("8 x 4096 bfloat16", "triton", draw, supports, run, native, expected)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from overlay.bound import Bound, Measured, comparable, differences, worst

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: The positional arguments of a kernel; None is an argument that is left out.
Tensors = Sequence["Tensor | None"]


class Expected(NamedTuple):
    """What one output must be: within `bound` of `want`."""

    bound: Bound
    want: Tensor


@dataclass(frozen=True)
class Case:
    """One shape of one kernel. The functions take the inputs as positional arguments.

    `label` is the shape as a user reads it, `kernel` the backend that runs. `inputs` draws the arguments: equal shapes,
    dtypes and strides for every seed, since a captured graph is replayed with another one. What `fused` writes in place
    is among them and holds something that shows if it was left alone, such as NaN. `takes` says whether the patch would
    hand the call to its kernel. `fused` returns everything that it writes. `replaced` runs what the sglang without the
    patch runs. `expected` says, of inputs as they were before the call and of what the call made, what each output must
    be, in the order of the outputs; a later output may be judged by what an earlier one made, as its definition says.
    """

    label: str
    kernel: str
    inputs: Callable[[Draw], Tensors]
    takes: Callable[..., bool]
    fused: Callable[..., Sequence[Tensor]]
    replaced: Callable[..., object]
    expected: Callable[[Tensors, Sequence[Tensor]], Sequence[Expected]]

    def judge(self, given: Tensors, made: Sequence[Tensor]) -> Measured:
        """The output that uses up most of its bound. `given` are the inputs as they were before the call."""
        expected = self.expected(given, made)
        return worst((one.bound, got, one.want) for one, got in zip(expected, made, strict=True))


class Draw:
    """Random tensors on one device, the same for the same seed."""

    def __init__(self, device: torch.device, seed: int) -> None:
        import torch

        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal, float32 unless another dtype is named."""
        import torch

        drawn = torch.randn(*shape, generator=self._generator, device=self.device)
        return drawn if dtype is None else drawn.to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Of [0, 1), float32."""
        import torch

        return torch.rand(*shape, generator=self._generator, device=self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Of [low, high), int64 unless another dtype is named."""
        import torch

        return torch.randint(low, high, shape, generator=self._generator, device=self.device, dtype=dtype)

    def distinct(self, count: int, of: int) -> Tensor:
        """`count` different numbers below `of`, int64."""
        import torch

        return torch.randperm(of, generator=self._generator, device=self.device)[:count]


def within(name: str, want: Tensor, tolerance: Tensor) -> Expected:
    """An output whose every element has a tolerance of its own, in the unit of `want`: 0 is equality.

    NaN is expected where `want` is NaN, and only there.
    """
    return Expected(Bound(name, 1.0, _of_tolerance(tolerance)), want)


def _of_tolerance(tolerance: Tensor) -> Callable[[Tensor, Tensor], float]:
    def of_tolerance(got: Tensor, want: Tensor) -> float:
        """The largest part of its tolerance that an element uses up."""
        if not comparable(got, want):
            return math.inf
        off = differences(got, want)
        share = (off / tolerance).masked_fill(off == 0, 0.0)
        return float(share.max()) if share.numel() else 0.0

    return of_tolerance
