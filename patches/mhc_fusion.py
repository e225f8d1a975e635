"""What `hc_post` of an attention computes for the `hc_pre` that follows it, and which backend computes it.

Every pairing is by identity of tensors: that `hc_post` is an attention's, because it is given the very `post` that
`hc_pre` made for the attention; that `hc_pre` may take what is ready, because it is given the very streams that
`hc_post` returned, and the very matrix that was used. So layers, two interleaved micro-batches and a draft model cannot
be mistaken for each other: what does not match is computed by the release, and costs at most one fusion in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from overlay.counters import CALLS, FAILURES, FALLBACKS
from overlay.guard import Guard
from overlay.say import say

if TYPE_CHECKING:
    from torch import Tensor

    from patches.kernels.mhc import Boundary, Constants

_IN_FLIGHT = 2
"""Micro-batches that two-batch overlap interleaves within one layer."""


POST_MULT = 2.0
"""`_MHC_POST_MULT_VALUE` of 0.5.13 to 0.5.18 (deepseek_v4.py:131 of the first)."""


class Backend(NamedTuple):
    """A fused kernel, and the rule that says which tensors it takes."""

    name: str
    supports: Callable[..., bool]
    run: Callable[..., Boundary]


class _Ready(NamedTuple):
    """A boundary that was computed, with the matrix it was computed with."""

    boundary: Boundary
    fn: Tensor


class Fusion:
    """The boundaries of one process. `backends` are tried in order; one that fails is never tried again, and with the
    last one `guard` trips."""

    def __init__(self, backends: Sequence[Backend], guard: Guard) -> None:
        self.guard = guard
        self._backends = tuple(backends)
        self._attention: deque[ref[Tensor]] = deque(maxlen=_IN_FLIGHT)
        self._ready: _Ready | None = None

    def expect(self, post: Tensor) -> None:
        """`hc_pre` made this `post` for an attention."""
        self._attention.append(ref(post))

    def expects(self, post: Tensor) -> bool:
        """Whether `hc_post` with this `post` ends an attention, whose boundary a backend may take."""
        return self.guard.on and any(expected() is post for expected in self._attention)

    def post(self, layer: Any, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor | None:
        """The streams after the attention of `layer`, as `hc_post` returns them; None if no backend takes the call.

        What the layer's feed-forward part needs of them is kept for `take`.
        """
        fn = layer.hc_ffn_fn
        tensors = (x, residual, post, comb, fn, layer.hc_ffn_scale, layer.hc_ffn_base)
        for backend in self._backends:
            try:
                if not backend.supports(*tensors):
                    continue
                boundary = backend.run(*tensors, _constants(layer))
            except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and the release computes the same
                self._give_up(backend, error)
                continue
            self.guard.counts[CALLS] += 1
            self._ready = _Ready(boundary, fn)
            return boundary.residual
        if self.guard.on:
            self.guard.counts[FALLBACKS] += 1
        return None

    def _give_up(self, backend: Backend, error: Exception) -> None:
        self._backends = tuple(one for one in self._backends if one is not backend)
        if not self._backends:
            self.guard.trip(error)
            return
        self.guard.counts[FAILURES] += 1
        taking_over = f"{self._backends[0].name} takes over"
        say(
            f"{self.guard.patch_id}: {backend.name} failed and is off in this process, {taking_over}: "
            f"{type(error).__name__}: {error}"
        )

    def take(self, streams: Tensor, fn: Tensor) -> Boundary | None:
        """What `post` has computed for these streams and this matrix, once."""
        ready = self._ready if self.guard.on else None
        if ready is None or ready.boundary.residual is not streams or ready.fn is not fn:
            return None
        self._ready = None
        self.guard.counts[CALLS] += 1
        return ready.boundary


def _constants(layer: Any) -> Constants:
    from patches.kernels.mhc import Constants

    return Constants(layer.rms_norm_eps, layer.hc_eps, POST_MULT, layer.hc_sinkhorn_iters)
