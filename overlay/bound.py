"""How far a result is from the one it stands for, and how far it may be.

A measure takes two tensors, `got` and `want`, of one device and returns one float: it waits for the GPU. What cannot be
compared (another shape, NaN in one of the two) is infinitely far. Used by shadow runs and by `amd-sglang verify`.
Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from overlay.records import dataclass

if TYPE_CHECKING:
    from torch import Tensor

    Measure = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Bound:
    """What a patch promises of one of its results: `measure(got, want)` is at most `limit`."""

    name: str
    limit: float
    measure: Measure

    def error(self, got: Tensor, want: Tensor) -> Measured:
        """How far `got` is from `want`."""
        return Measured(self, self.measure(got, want))


@dataclass(frozen=True)
class Measured:
    """An error that was found, in the unit of its bound's measure."""

    bound: Bound
    error: float

    @property
    def within(self) -> bool:
        """Whether the promise is kept."""
        return self.error <= self.bound.limit

    @property
    def share(self) -> float:
        """The part of the bound that is used up; above 1 it is broken."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound.limit if self.bound.limit else math.inf

    def __str__(self) -> str:
        return f"{self.bound.name} is off by {self.error:g} ({self.bound.measure.__name__}), bound {self.bound.limit:g}"


def worst(compared: Iterable[tuple[Bound, Tensor, Tensor]]) -> Measured:
    """Of `(bound, got, want)`, at least one, the error that uses up most of its bound."""
    return max((bound.error(got, want) for bound, got, want in compared), key=lambda measured: measured.share)


_PIECE = 1 << 22
"""Elements that are compared at a time: a server has little memory to spare, and each becomes several of 8 bytes."""


def mismatches(got: Tensor, want: Tensor) -> float:
    """How many elements differ in a bit; any two NaN are alike. The dtypes of integers need not be the same."""
    if got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
        return math.inf
    if got.is_floating_point() and got.dtype != want.dtype:
        return math.inf
    return sum((float(_differ(a, b).sum()) for a, b in _pieces(got, want)), 0.0)


def ulps(got: Tensor, want: Tensor) -> float:
    """How many values of their dtype lie between two elements, at most: 1 for neighbours. -0 and +0 are one value.

    bfloat16, float16 or float32, the same for both.
    """
    return math.inf if got.dtype != want.dtype else _largest(_distances, got, want)


def absolute(got: Tensor, want: Tensor) -> float:
    """The largest difference of two elements, formed in float64."""
    return _largest(differences, got, want)


def row_eps(got: Tensor, want: Tensor) -> float:
    """The largest difference of two elements in units of `finfo(dtype).eps` times the largest finite magnitude of
    their row of `want`, a row being the last dimension: for results in which large terms may cancel."""
    return _largest(_row_differences, got, want)


def comparable(got: Tensor, want: Tensor) -> bool:
    """Whether two tensors have one shape, and NaN in the same places."""
    return got.shape == want.shape and not bool((got.isnan() != want.isnan()).any())


def differences(got: Tensor, want: Tensor) -> Tensor:
    """Element by element in float64; 0 where both hold the same infinity, or NaN."""
    wide, other = got.double(), want.double()
    return (wide - other).abs().masked_fill((wide == other) | other.isnan(), 0.0)


def _largest(measure: Callable[[Tensor, Tensor], Tensor], got: Tensor, want: Tensor) -> float:
    if not comparable(got, want):
        return math.inf
    return max((float(measure(a, b).max()) for a, b in _pieces(got, want)), default=0.0)


def _pieces(got: Tensor, want: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both, as many at a time as are cheap to compare."""
    if want.numel() == 0:
        return
    width = want.shape[-1] if want.dim() else 1
    rows = max(1, _PIECE // width)
    a, b = got.reshape(-1, width), want.reshape(-1, width)
    for at in range(0, len(a), rows):
        yield a[at : at + rows], b[at : at + rows]


def _differ(a: Tensor, b: Tensor) -> Tensor:
    if not a.is_floating_point():
        return a != b
    return ((a != b) | (a.signbit() != b.signbit())) & ~(a.isnan() & b.isnan())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return (_position(a) - _position(b)).abs().masked_fill(b.isnan(), 0)


def _row_differences(a: Tensor, b: Tensor) -> Tensor:
    import torch

    magnitude = b.double().abs().masked_fill(~b.isfinite(), 0).amax(-1, keepdim=True)
    off = differences(a, b)
    return torch.where(off == 0, 0.0, off / (torch.finfo(b.dtype).eps * magnitude))


def _position(values: Tensor) -> Tensor:
    """The place of every element in the order of all values of its dtype, with 0 for both zeros."""
    import torch

    as_integers = {2: torch.int16, 4: torch.int32}[values.element_size()]
    bits = values.contiguous().view(as_integers).long()
    return torch.where(bits < 0, torch.iinfo(as_integers).min - bits, bits)
