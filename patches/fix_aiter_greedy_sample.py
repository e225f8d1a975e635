"""Greedy decoding with aiter: no token outside the vocabulary.

What is wrong upstream. #26383 (0.5.13) takes `aiter.greedy_sample` for greedy batches, which loads 16 lanes at a time
and lets the lanes beyond the vocabulary compete: where 16 does not divide the vocabulary and the row's maximum is
negative, -inf or NaN, it returns `vocab_size`, a token that does not exist (#27247: MiniCPM-V, 151666 tokens; a grammar
mask does the same). 0.5.13 documents this and leaves it on (sampler.py:49); aiter before v0.1.12 also launches on the
null stream, not on the current one.

How we know it is right. The name that `Sampler.forward` calls is bound to `patches.kernels.argmax`, which equals
`torch.argmax`, keeps aiter's contract (int32, in place) and runs on the current stream. Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from overlay import guard as guards
from overlay import shadow
from overlay.bound import Bound, mismatches
from overlay.counters import CALLS, FALLBACKS
from overlay.fingerprint import IMPORT
from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "sglang.srt.layers.sampler"
_GREEDY_SAMPLE = Slot(_MODULE, "_aiter_greedy_sample")
_FORWARD = Slot(_MODULE, "Sampler.forward")

_ID = "fix-aiter-greedy-sample"

#: Against `torch.argmax`, which the release takes without aiter.
BOUNDS = (Bound("ids", 0, mismatches),)

_USE_AITER = "SGLANG_USE_AITER"
_DISABLE = "SGLANG_DISABLE_AITER_GREEDY_SAMPLE"


def make_greedy_sample(_original: object) -> Callable[[Tensor, Tensor], None]:
    """A correct function of aiter's contract: `input` (batch, vocab), `out` (batch,) int32, written in place."""
    import torch

    from patches.kernels.argmax import greedy_argmax, supports

    guard = guards.guard(_ID)

    def greedy_sample(out: Tensor, input: Tensor) -> None:
        if guard.on and supports(input):
            if guard.shadow_runs and shadow.due(guard):
                kernel, upstream = partial(greedy_argmax, input, out), partial(torch.argmax, input, -1)
                out.copy_(shadow.run(guard, kernel, upstream, BOUNDS, (input,)))
                return
            try:
                greedy_argmax(input, out)
            except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and torch computes the same
                guard.trip(error)
            else:
                guard.counts[CALLS] += 1
                return
        elif guard.on:
            guard.counts[FALLBACKS] += 1
        out.copy_(torch.argmax(input, -1))

    return greedy_sample


def _where_aiter_is_called(facts: Facts) -> Need:
    if not facts.is_on(_USE_AITER):
        return Need(False, f"{_USE_AITER} is off: this release then takes torch.argmax")
    if facts.is_on(_DISABLE):
        return Need(False, f"{_DISABLE} is on: this release then takes torch.argmax")
    return Need(True, "fix of #27247: aiter.greedy_sample, which this release calls, can return vocab_size as a token")


def _except_on_gfx1250(facts: Facts) -> Need:
    if facts.platform.arch == "gfx1250":
        return Need(False, "this release takes torch.argmax on gfx1250")
    return _where_aiter_is_called(facts)


_IMPORTED = Image.of(_GREEDY_SAMPLE, f"{IMPORT}aiter.greedy_sample")
_TARGETS = (Target(_GREEDY_SAMPLE, Method.REPLACE, make_greedy_sample),)

PATCH = Patch(
    id=_ID,
    title="a greedy argmax that never leaves the vocabulary",
    why="aiter's greedy_sample, called since 0.5.13, returns vocab_size where 16 does not divide the vocabulary and "
    "the row's maximum is negative, -inf or NaN: MiniCPM-V, and any grammar mask that leaves a negative winner. It "
    "also runs on the null stream before aiter v0.1.12.",
    upstream=("#27247", "#26383"),
    contained_since="no release yet",
    versions=">=0.5.13,<0.5.24",
    kernels="patches.proofs.argmax:in_place_cases",
    variants=(
        Variant(
            name="aiter",
            images=(
                _IMPORTED,
                Image.of(_FORWARD, "7dad8b308d5b6f38", "41e7575a192ff50d", "1ea27a7655c6fb68", "281ec3740fcf3f40"),
            ),
            need=_where_aiter_is_called,
            targets=_TARGETS,
        ),
        Variant(
            name="aiter-except-gfx1250",
            images=(
                _IMPORTED,
                Image.of(_FORWARD, "89ea4cb990e6b4c2", "e269ee0621458981", "4c043266ad3e901c", "6fc7d20e407a7b67"),
            ),
            need=_except_on_gfx1250,
            targets=_TARGETS,
        ),
    ),
    verified_by="an emulation of aiter's vector load that shows the defect, and real Sampler.forward of 0.5.13 and "
    "0.5.23 in which it is gone; H200 in bf16, fp16 and fp32; offline compilation for gfx942, gfx950 and gfx1100",
    remove_when="every aiter that a supported release's images carry masks the lanes beyond the vocabulary",
)
