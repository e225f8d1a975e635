"""Greedy decoding on ROCm: the next tokens of an all-greedy batch from one pass over the logits at memory speed.

What upstream lacks. Through 0.5.12.post1 `Sampler.forward` takes `torch.argmax`, 7 % of the decode kernel time on MI300
(#25251). #26383 (0.5.13) replaced it on ROCm by aiter's `greedy_sample`, which can return a token outside the
vocabulary: those releases are the business of `patches.fix_aiter_greedy_sample`.

How we know it is right. `patches.kernels.argmax` equals `torch.argmax` on ties, NaN, infinities and signed zeros, and
all else of the step stays the release's own: what comes before (custom logit processors, NaN detection), what comes
after (token sync), and every batch that samples or wants log probabilities.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from overlay import guard as guards
from overlay import shadow
from overlay.bound import Bound, mismatches
from overlay.counters import CALLS, FALLBACKS
from overlay.gates import Gate, OneOf
from overlay.model import ABSENT, Image, Method, Need, Patch, Slot, Target, Variant, always

if TYPE_CHECKING:
    from torch import Tensor

    Sync = Callable[[Any, Tensor, Any], None]

_MODULE = "sglang.srt.layers.sampler"
_FORWARD = Slot(_MODULE, "Sampler.forward")
_INIT = Slot(_MODULE, "Sampler.__init__")
_PREPROCESS = Slot(_MODULE, "Sampler._preprocess_logits")
_SYNC = Slot(_MODULE, "Sampler._sync_token_ids_across_tp")

_ID = "greedy-sampler"

#: Against `torch.argmax`.
BOUNDS = (Bound("ids", 0, mismatches),)

BACKEND = Gate(
    "AMD_SGLANG_GREEDY_SAMPLER_BACKEND",
    "argmax of greedy decoding: auto (triton), triton, torch (upstream's torch.argmax)",
    "auto",
    OneOf(("auto", "triton", "torch")),
)


def make_forward(original: Any) -> Callable[..., Any]:
    """`Sampler.forward` where the release syncs token ids by a method (0.5.9 to 0.5.12.post1)."""
    return _forward(original, lambda sampler, ids, info: sampler._sync_token_ids_across_tp(ids, info))


def make_forward_with_inlined_sync(original: Any) -> Callable[..., Any]:
    """`Sampler.forward` where the release syncs token ids in the body it replaces (through 0.5.8.post1)."""
    return _forward(original, _sync_token_ids)


def _forward(original: Callable[..., Any], sync: Sync) -> Callable[..., Any]:
    argmax = _argmax(BACKEND.read(os.environ))

    def forward(
        self: Any,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: Tensor,
    ) -> Any:
        if return_logprob or not sampling_info.is_all_greedy:
            return original(
                self, logits_output, sampling_info, return_logprob, top_logprobs_nums, token_ids_logprobs, positions
            )
        ids = argmax(self._preprocess_logits(logits_output.next_token_logits, sampling_info))
        sync(self, ids, sampling_info)
        return ids

    return forward


def _argmax(backend: str) -> Callable[[Tensor], Tensor]:
    import torch

    if backend == "torch":
        return lambda logits: torch.argmax(logits, -1)
    from patches.kernels.argmax import greedy_argmax, supports

    guard = guards.guard(_ID)

    def argmax(logits: Tensor) -> Tensor:
        if guard.on and supports(logits):
            if guard.shadow_runs and shadow.due(guard):
                kernel, upstream = partial(greedy_argmax, logits), partial(torch.argmax, logits, -1)
                return shadow.run(guard, kernel, upstream, BOUNDS, (logits,))
            try:
                ids = greedy_argmax(logits)
            except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and upstream computes the same
                guard.trip(error)
            else:
                guard.counts[CALLS] += 1
                return ids
        elif guard.on:
            guard.counts[FALLBACKS] += 1
        return torch.argmax(logits, -1)

    return argmax


def _sync_token_ids(sampler: Any, ids: Tensor, sampling_info: Any) -> None:
    """The end of `forward` in 0.5.6.post2 to 0.5.8.post1 (sampler.py:205, 0.5.7)."""
    if sys.modules[_MODULE].SYNC_TOKEN_IDS_ACROSS_TP or sampling_info.grammars:
        import torch.distributed as dist

        dist.all_reduce(ids, op=dist.ReduceOp.MIN, group=sampler.tp_sync_group)


_needed = always(Need(True, "back-port of #26383: this release takes torch.argmax for greedy batches on ROCm"))


_LOGITS = Image.of(_PREPROCESS, "68c418a11fdd2c62")

PATCH = Patch(
    id=_ID,
    title="one Triton argmax at memory speed for greedy batches",
    why="Through 0.5.12.post1 greedy decoding runs torch.argmax over the logits, whose reduction leaves most of the "
    "GPU idle at small batches and costs 7 % of the decode kernel time on MI300.",
    upstream=("#26383", "#25251"),
    contained_since="0.5.13, by aiter's kernel: see fix-aiter-greedy-sample",
    versions=">=0.5.6.post2,<0.5.13",
    kernels="patches.proofs.argmax:cases",
    gates=(BACKEND,),
    variants=(
        Variant(
            name="inlined-sync",
            images=(
                Image.of(_FORWARD, "b75eee00ecfdd6ac"),
                Image.of(_INIT, "32a2233102d31dca"),
                _LOGITS,
                Image.of(_SYNC, ABSENT),
            ),
            need=_needed,
            targets=(Target(_FORWARD, Method.REPLACE, make_forward_with_inlined_sync),),
        ),
        Variant(
            name="sync-method",
            images=(
                Image.of(_FORWARD, "1b5e2e7718b781f1"),
                _LOGITS,
                Image.of(_SYNC, "94bbd120e0eae0c7"),
            ),
            need=_needed,
            targets=(Target(_FORWARD, Method.REPLACE, make_forward),),
        ),
    ),
    verified_by="real Sampler.forward of all ten releases in the Triton interpreter, ids and dtype identical to the "
    "original's; H200 in bf16, fp16 and fp32; offline compilation for gfx942, gfx950 and gfx1100",
    remove_when="the oldest supported release takes a correct fused argmax on ROCm",
)
