"""What sglang imports from aiter on gfx95 only: kernels for MXFP4 and for fp8 with group scales. None has a body."""

from __future__ import annotations

from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.settings import AITER_HEAD

_TRITON = "aiter.ops.triton"


def _fused_quantiser(module: str, name: str, parameters: str, added: str = "") -> None:
    """A norm or a reshape fused with a quantiser, `added` being the parameters of the head of aiter's main branch. Its
    module moved into `quant/`; the place it had before is kept as an alias."""
    full, alias = f"{_TRITON}.quant.{module}.{name}", (f"{_TRITON}.{module}",)
    if not added:
        aiter.signature(full, parameters, shown_in=alias)
        return
    aiter.signature(full, parameters, shown_in=alias, last="v0.1.15")
    aiter.signature(full, f"{parameters}, {added}", shown_in=alias, first=AITER_HEAD)


_fused_quantiser(
    "fused_fp8_quant",
    "fused_rms_fp8_group_quant",
    "inp1, inp1_weight, inp1_epsilon, inp2=None, inp2_weight=None, inp2_epsilon=None, group_size=128, dtype_quant=..., "
    "res1=None, output_unquantized_inp1=False, transpose_scale=False",
    added="is_x_scale_strided=False",
)
_fused_quantiser(
    "fused_fp8_quant", "fused_flatten_fp8_group_quant", "x, group_size, dtype_quant=...", added="transpose_scale=False"
)
_fused_quantiser(
    "fused_mxfp4_quant",
    "fused_rms_mxfp4_quant",
    "x1, x1_weight, x1_epsilon, x2=None, x2_weight=None, x2_epsilon=0.0, res1=None, shuffle=False, "
    "scale_shuffle_padding=False, output_unquantized_inp1=False",
    added="inargs='auto'",
)
_fused_quantiser("fused_mxfp4_quant", "fused_flatten_mxfp4_quant", "x")

aiter.signature(
    f"{_TRITON}.gemm.batched.batched_gemm_afp4wfp4_pre_quant.batched_gemm_afp4wfp4_pre_quant",
    "x, w, w_scales, dtype=..., y=None, config=None",
    shown_in=(f"{_TRITON}.batched_gemm_afp4wfp4_pre_quant",),
)
aiter.signature(
    f"{_TRITON}.fusions.fused_bmm_rope_kv_cache.fused_fp8_bmm_rope_cat_and_cache_mla",
    "q_nope, w_k, w_k_scale, q_pe, k_nope, k_rope, kv_cache, slot_mapping, positions, cos, sin, group_size=128, "
    "transpose_bm=True, config=None, k_scale=None, is_neox=False, q_out_dtype=..., num_decode_toks_for_zeros=0",
)

# The output projection of DeepSeek-V4.
aiter.module("aiter.ops.batched_gemm_op_a8w8")
aiter.signature(
    "aiter.ops.batched_gemm_op_a8w8.batched_gemm_a8w8_mxscale",
    "x, wo_a, x_scale, w_scale, dtype=...",
    shown_in=("aiter",),
    first=AITER_HEAD,
)
aiter.signature(
    "aiter.ops.inverse_rope_group_quant.inverse_rope_group_quant",
    "o, positions, cos_cache, sin_cache, num_groups, quant_group_size=128, scale_layout='row', x_fp8=None, "
    "x_scale=None",
    shown_in=("aiter",),
    first=AITER_HEAD,
)
