"""DeepSeek-V4's mHC on ROCm: the attention boundary hands aiter's Triton kernel the matrix that it can read.

What is wrong upstream. Since #32577 (0.5.19) a layer's two boundaries share `try_mhc_fused_post_pre_boundary`, whose
callers say whether aiter's Triton `mhc_post_pre` gets `fn` transposed. That kernel takes (n*C, 2n + n*n) and nothing
else; every caller holds (2n + n*n, n*C); and the attention boundary says `fn_transpose=False` (0.5.19
deepseek_v4.py:2090, 0.5.23 deepseek_v4_platform_stage.py:272). The kernel's assertion is caught, and at layer 1 the
fused path is switched off for the whole process. On gfx950 this happens where aiter's HIP kernel, which is asked first,
is missing or has failed; on gfx1250 always, and the next resort there is TileLang, which does not compile.

How we know it is right. The shape says which of the two `fn` is. A caller that was right is given what it asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "sglang.srt.models.deepseek_common.amd.deepseek_v4_fused_mhc"
_BOUNDARY = Slot(_MODULE, "try_mhc_fused_post_pre_boundary")
_TRY_FUSED = Slot(_MODULE, "try_fused_hc_post_pre")
_LAYER = Slot("sglang.srt.models.deepseek_v4", "DeepseekV4DecoderLayer.forward")
_STAGE = Slot("sglang.srt.models.deepseek_v4_platform_stage", "NonCudaDecoderMixin.forward")


def make_boundary(original: Any) -> Callable[..., Any]:
    """The dispatch of one boundary to aiter's kernels, with `fn_transpose` true exactly if `hc_fn` needs it.

    `hc_fn` fp32 (2n + n*n, n*C), as the layers hold it, or its transpose; `hc_base` fp32 (2n + n*n,).
    """

    def try_mhc_fused_post_pre_boundary(
        layer_input: Tensor,
        residual: Tensor,
        post: Tensor,
        comb: Tensor,
        hc_fn: Tensor,
        hc_scale: Tensor,
        hc_base: Tensor,
        hc_mult: int,
        rms_eps: float,
        hc_eps: float,
        hc_post_mult: float,
        sinkhorn_iters: int,
        norm_weight: Tensor | None,
        norm_eps: float | None,
        fn_transpose: bool,
        is_gfx95_supported_flag: bool,
    ) -> Any:
        return original(
            layer_input,
            residual,
            post,
            comb,
            hc_fn,
            hc_scale,
            hc_base,
            hc_mult,
            rms_eps,
            hc_eps,
            hc_post_mult,
            sinkhorn_iters,
            norm_weight,
            norm_eps,
            hc_fn.shape[0] == hc_base.shape[0],
            is_gfx95_supported_flag,
        )

    return try_mhc_fused_post_pre_boundary


def _where_the_boundary_is_fused(facts: Facts) -> Need:
    if facts.platform.arch == "gfx1250":
        return Need(True, f"{_DEFECT}, and falls to TileLang, which does not compile on gfx1250")
    if not facts.is_on("SGLANG_USE_AITER"):
        return Need(False, "SGLANG_USE_AITER is off: this release then fuses no mHC boundary on gfx95")
    return Need(True, f"{_DEFECT}, wherever aiter's HIP kernel is missing or has failed")


_DEFECT = (
    "fix of #32577: the attention boundary passes mhc_post_pre an untransposed fn, which switches the fused mHC off "
    "for the whole process at layer 1"
)
_DISPATCH = (Image.of(_BOUNDARY, "39bd48cc63b27e63"), Image.of(_TRY_FUSED, "a7904471dda7ccd5"))
_TARGETS = (Target(_BOUNDARY, Method.REPLACE, make_boundary),)

PATCH = Patch(
    id="fix-mhc-fn-transpose",
    title="the fused mHC survives the attention boundary",
    why="The attention boundary of DeepSeek-V4 passes aiter's Triton mhc_post_pre its matrix untransposed. The "
    "kernel's assertion is caught and the fused path is off for the whole process from layer 1 on, or, on gfx1250, "
    "replaced by TileLang, which does not compile there.",
    upstream=("#32577",),
    contained_since="no release yet",
    versions=">=0.5.19,<0.5.24",
    archs=frozenset({"gfx950", "gfx1250"}),
    variants=(
        Variant(
            name="decoder-layer",
            images=(*_DISPATCH, Image.of(_LAYER, "3986932e96534dc0", "03f86e12b85efee5")),
            need=_where_the_boundary_is_fused,
            targets=_TARGETS,
        ),
        Variant(
            name="platform-stage",
            images=(*_DISPATCH, Image.of(_STAGE, "934c3c2e4d8cb2eb")),
            need=_where_the_boundary_is_fused,
            targets=_TARGETS,
        ),
    ),
    verified_by="the real decoder layer of the releases over a kernel with aiter's signature and assertions: the "
    "second layer switches the fused path off without the patch, and every boundary is fused with it",
    remove_when="the oldest supported release passes fn_transpose=True at every boundary",
)
