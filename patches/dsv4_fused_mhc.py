"""DeepSeek-V4 on ROCm, 0.5.13 to 0.5.18: the fused mHC that upstream wrote and cannot reach.

What is wrong upstream. #26383 gave DeepSeek-V4 a fused step from the output of an attention to the input of the
feed-forward part. Three days later #25976 put its only call behind `_is_fused_mhc_post_pre_enabled`, which asks for
TileLang's kernels, and those are off on ROCm. Opening that branch is no way out: after a fused step it leaves out
`post_attention_layernorm` (0.5.13 deepseek_v4.py:1430), in every one of these releases.

How we know it is right. The branch that ROCm takes calls `hc_post`, then `hc_pre` on what that returned, then the
layernorm. `hc_post` computes both at once, and `hc_pre` hands out what is ready, paired by identity of the tensors
(`patches.mhc_fusion`). `patches.kernels.mhc` rounds where the two methods do, and the layernorm stays the release's.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay import guard as guards
from overlay import shadow
from overlay.bound import Bound, absolute, row_eps
from overlay.gates import Gate, OneOf
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant, always
from patches.dsv4_window import NO_BACKEND

if TYPE_CHECKING:
    from torch import Tensor

    from patches.mhc_fusion import Fusion

_MODEL = "sglang.srt.models.deepseek_v4"
_FUSED = "sglang.srt.models.deepseek_common.amd.deepseek_v4_fused_mhc"
_LAYER = "DeepseekV4DecoderLayer"

BACKEND = Gate(
    "AMD_SGLANG_DSV4_MHC_BACKEND",
    "fused mHC of DeepSeek-V4: auto (triton), triton (within 1e-5), aiter (only one that is known to compute the same, "
    "within 1e-2: it rounds fn to 16 bits), off (upstream's separate operations)",
    "auto",
    OneOf(("auto", "triton", "aiter", "off")),
)


_ID = "dsv4-fused-mhc"


def bounds_of(backend: str) -> tuple[Bound, ...]:
    """Of streams, layer input, post and comb, against the release's operations on the same inputs: 16 bits are rounded
    once, of the largest in a row; the coefficients are as good as the backend makes them."""
    coefficient = 1e-2 if backend == "aiter" else 1e-5
    return (
        Bound("streams", 1, row_eps),
        Bound("layer_input", 1, row_eps),
        Bound("post", coefficient, absolute),
        Bound("comb", coefficient, absolute),
    )


@functools.cache
def fusion_of(backend: str) -> Fusion:
    """What the two methods share in this process. Raises UnsuitableAiterError if `aiter` was asked for and is not
    provably the one we know."""
    from patches.kernels import mhc
    from patches.mhc_fusion import Backend, Fusion

    backends = [Backend("triton", mhc.supports, mhc.mhc_post_pre)]
    if backend == "aiter":
        from patches.kernels.mhc_aiter import AiterMhc

        aiter = AiterMhc()
        backends.insert(0, Backend("aiter", aiter.supports, aiter))
    return Fusion(backends, guards.guard(_ID))


def make_hc_post(original: Any) -> Callable[..., Tensor]:
    """`DeepseekV4DecoderLayer.hc_post`: after an attention the fused kernel where it takes the call, else `original`.

    x (M, C); residual (M, n, C); post fp32 (M, n); comb fp32 (M, n, n) -> (M, n, C).
    """
    import torch

    backend = BACKEND.read(os.environ)
    if backend == "off":
        return lambda self, x, residual, post, comb: original(self, x, residual, post, comb)
    fusion, bounds = fusion_of(backend), bounds_of(backend)
    guard = fusion.guard

    def hc_post(self: Any, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        # torch.compile traces the original: its operations are worth fusing, and a launch is opaque to it.
        if not torch.compiler.is_compiling() and fusion.expects(post):
            if guard.shadow_runs and shadow.due(guard):
                theirs: Tensor = original(self, x, residual, post, comb)
                ours = fusion.post(self, x, residual, post, comb)
                agreed = ours is not None and shadow.agree(guard, ours, theirs, bounds[:1], (x, residual))
                return ours if agreed else theirs  # type: ignore[return-value]
            streams = fusion.post(self, x, residual, post, comb)
            if streams is not None:
                return streams
        return original(self, x, residual, post, comb)  # type: ignore[no-any-return]

    return hc_post


def make_hc_pre(original: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor, bool]]:
    """`DeepseekV4DecoderLayer.hc_pre`: what `hc_post` has made ready for these streams, else `original`.

    x (M, n, C); hc_fn fp32 (2n + n*n, n*C) -> (M, C), post fp32 (M, n), comb fp32 (M, n, n), and whether a norm was
    applied, which is False for what the fused kernel made.
    """
    import torch

    backend = BACKEND.read(os.environ)
    if backend == "off":
        return lambda self, *args, **kwargs: original(self, *args, **kwargs)
    fusion, bounds = fusion_of(backend), bounds_of(backend)
    guard = fusion.guard
    # A subclass, such as a stage of DSpark, has a forward of its own, which nobody has read.
    layer_class = getattr(importlib.import_module(_MODEL), _LAYER)

    def hc_pre(self: Any, x: Tensor, hc_fn: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, bool]:
        if torch.compiler.is_compiling():
            return original(self, x, hc_fn, *args, **kwargs)  # type: ignore[no-any-return]
        ready = fusion.take(x, hc_fn)
        if ready is not None:
            ours = ready.layer_input, ready.post, ready.comb
            if guard.shadow_runs and shadow.due(guard):
                # Without the norm, which may be fused into what the release computes.
                unnormed = {name: value for name, value in kwargs.items() if name != "norm"}
                theirs = original(self, x, hc_fn, *args[:2], **unnormed)[:3]
                ours = ours if shadow.agree(guard, ours, theirs, bounds[1:], (x, hc_fn)) else theirs
            return *ours, False
        made: tuple[Tensor, Tensor, Tensor, bool] = original(self, x, hc_fn, *args, **kwargs)
        if type(self) is layer_class and hc_fn is self.hc_attn_fn:
            fusion.expect(made[1])
        return made

    return hc_pre


def _unreachable(facts: Facts) -> Need:
    if facts.environ.get(_SWITCH, "").lower() in ("false", "0", "no", "n"):
        return Need(False, f"{_SWITCH} is off: nobody wants the fused mHC of this release")
    return _unreachable_and_unswitched(facts)


_unreachable_and_unswitched = always(
    Need(
        True,
        "revival of #26383: this release has a fused mHC and cannot reach it, since #25976 put its only call behind "
        "TileLang's switches, which are off on ROCm; done in hc_pre and hc_post, for the branch skips a layernorm",
    )
)


_rewritten = always(Need(False, "this release fuses both boundaries of a layer itself (#32577)"))


def _layer(name: str, *digests: str) -> Image:
    return Image.of(Slot(_MODEL, f"{_LAYER}.{name}"), *digests)


def _dead(fused: str, *switch: str) -> tuple[Image, ...]:
    """The sources of 0.5.13 to 0.5.18, by those of upstream's fused step and of the switch before its only call."""
    forward = "26ca77730e29b605", "f46fff8819a9a523", "c0c4f4bd5845762b", "b0de39a35af117f5", "216514d915aa3264"
    pre = "6f120e17448279b1", "3b5d52cc41c300ad", "37d27fc0f903ea48", "2e13f4d3ac073a04", "c326d1f091fd4f4a"
    post = "ab8ced599ad6614a", "7cba9cbcb4acb4cf", "cdc58193d659402f", "a97fcfe86163a3c3"
    return (
        Image.of(Slot(_FUSED, "try_fused_hc_post_pre"), fused),
        Image.of(Slot(_MODEL, "_is_fused_mhc_post_pre_enabled"), *switch),
        _layer("forward", *forward),
        _layer("op_mhc_post_attn_pre_mlp", ABSENT, "8a2518dc87104faf"),  # two-batch overlap, since 0.5.15
        _layer("hc_pre", *pre),
        _layer("hc_post", *post),
    )


_SWITCH = "SGLANG_OPT_USE_TRITON_FUSED_MHC"
_TARGETS = (
    Target(Slot(_MODEL, f"{_LAYER}.hc_post"), Method.REPLACE, make_hc_post),
    Target(Slot(_MODEL, f"{_LAYER}.hc_pre"), Method.REPLACE, make_hc_pre),
)

PATCH = Patch(
    id=_ID,
    title="one fused step from DeepSeek-V4's attention output to its feed-forward input, in decode",
    why="DeepSeek-V4's hyper-connections (mHC) end a sublayer and start the next one: mixing the residual streams, 24 "
    "coefficients a token from 700,000 weights, 20 rounds of Sinkhorn. #26383 fused the step after an attention for "
    "ROCm, and since #25976 its code cannot be reached in any of 0.5.13 to 0.5.18. Upstream's branch must stay closed: "
    "it leaves out post_attention_layernorm. 0.5.12 cannot run the model on ROCm at all; 0.5.19 fuses both boundaries.",
    upstream=("#26383", "#25976"),
    contained_since="0.5.19",
    versions=">=0.5.12,<0.5.24",
    kernels="patches.proofs.mhc:cases",
    gates=(BACKEND,),
    variants=(
        Variant(
            name="unreachable",
            images=_dead("04bf34cacc6e78e8", "113263de74dd6f62", "8d359940880831ee"),
            need=_unreachable,
            targets=_TARGETS,
        ),
        Variant(
            name="unreachable-without-a-switch",
            images=_dead("078692e0d9f7c069", "8d359940880831ee"),
            need=_unreachable_and_unswitched,
            targets=_TARGETS,
        ),
        Variant(
            name="both-boundaries",
            images=(Image.of(Slot(_FUSED, "try_mhc_fused_post_pre_boundary"), "39bd48cc63b27e63"),),
            need=_rewritten,
        ),
        Variant(
            name="no-rocm-backend",
            images=(*NO_BACKEND.images, _layer("hc_pre", "0664da17bca66ea6")),
            need=NO_BACKEND.need,
        ),
    ),
    verified_by="the real decoder layer in the Triton interpreter against its own methods; the kernel against "
    "float64, on an H200 under graph replay as well; offline compilation for gfx942 and gfx950",
    remove_when="the oldest supported release is 0.5.19",
)
