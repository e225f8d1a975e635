"""Shadow runs: the first calls of a patch's kernel are computed by upstream as well, and compared.

`--shadow N` asks for them. What they find is bounded by what the patch promises: within the bound the kernel's result
is served, beyond it upstream's, and the kernel is off. No call that is run twice may contain a collective operation:
a rank whose guard has tripped runs it once, and its next one would meet the second of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from overlay.bound import Bound, worst
from overlay.counters import CALLS, SHADOWED
from overlay.guard import Guard

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result", bound="Tensor | tuple[Tensor, ...]")


class BeyondBoundError(Exception):
    """A kernel's result is further from upstream's than its patch promises."""


def due(guard: Guard) -> bool:
    """Whether the next call is to run both ways. A stream that captures a graph cannot wait for the comparison."""
    import torch

    return guard.shadow_runs > 0 and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def run(
    guard: Guard,
    kernel: Callable[[], Result],
    upstream: Callable[[], Result],
    bounds: Sequence[Bound],
    given: Sequence[object],
) -> Result:
    """The result of one call: `kernel`'s where it keeps the bounds, else `upstream`'s, with the guard tripped.

    `bounds` are those of the tensors of a result, in their order; `given` are the arguments, for the message.
    `upstream` runs first, so `kernel` may write to its inputs; it is on `upstream` to leave them alone.
    """
    theirs = upstream()
    try:
        ours = kernel()
    except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and upstream's result is here
        guard.trip(error)
        return theirs
    if not agree(guard, ours, theirs, bounds, given):
        return theirs
    guard.counts[CALLS] += 1
    return ours


def agree(guard: Guard, ours: Result, theirs: Result, bounds: Sequence[Bound], given: Sequence[object]) -> bool:
    """Whether the result of one call keeps the bounds. Where it does not, the guard trips."""
    guard.shadow_runs -= 1
    guard.counts[SHADOWED] += 1
    try:
        measured = worst(zip(bounds, _tensors(ours), _tensors(theirs), strict=True))
    except Exception as error:  # noqa: BLE001 - what cannot even be compared is no result
        guard.trip(error)
        return False
    guard.measure(measured)
    if not measured.within:
        shapes = ", ".join(filter(None, map(_shape, given)))
        guard.trip(BeyondBoundError(f"{measured}, for {shapes}"))
    return measured.within


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _shape(value: Any) -> str:
    """Such as bfloat16[3, 128]; nothing for what is no tensor."""
    return f"{str(value.dtype).rpartition('.')[2]}{list(value.shape)}" if hasattr(value, "shape") else ""
