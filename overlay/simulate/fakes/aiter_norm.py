"""aiter's norms. Sums and statistics in fp32, one rounding at the end, as its kernels do it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlay.simulate.fakes.aiter_values import QuantType
from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError
from overlay.simulate.settings import AITER_HEAD

_TOP = ("aiter",)
_ADD_QUANT = "out, input, residual_in, residual_out, scale, weight, epsilon, group_size=0, shuffle_scale=False"


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm over the last dimension, in the dtype of `x`."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(x.dtype)


def _add_rms_norm(
    out: Tensor, x: Tensor, residual_in: Tensor, residual_out: Tensor, weight: Tensor, epsilon: float
) -> None:
    # The kernel writes the sum in the dtype of the residual and normalises what it wrote.
    residual_out.copy_(x.float() + residual_in.float())
    out.copy_(rms_norm(residual_out.to(x.dtype), weight, epsilon))


@aiter.function("aiter.ops.rmsnorm.rmsnorm2d_fwd", shown_in=_TOP)
def rmsnorm2d_fwd(input: Tensor, weight: Tensor, epsilon: float, use_model_sensitive_rmsnorm: int = 0) -> Tensor:
    return rms_norm(input, weight, epsilon)


@aiter.function("aiter.ops.rmsnorm.rmsnorm2d_fwd_with_add", shown_in=_TOP, last="v0.1.15")
def rmsnorm2d_fwd_with_add(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
) -> None:
    _add_rms_norm(out, input, residual_in, residual_out, weight, epsilon)


@aiter.function("aiter.ops.rmsnorm.rmsnorm2d_fwd_with_add", shown_in=_TOP, first=AITER_HEAD)
def rmsnorm2d_fwd_with_add_or_gemma(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    gemma_norm: bool = False,
    use_model_sensitive_rmsnorm: int = 0,
) -> None:
    # The flag took the place of use_model_sensitive_rmsnorm: a caller of the older contract that passes 1 there by
    # position now asks for weight + 1.
    _add_rms_norm(out, input, residual_in, residual_out, weight.float() + gemma_norm, epsilon)


aiter.signature(
    "aiter.ops.rmsnorm.rmsnorm_quant",
    "out, input, scale, weight, epsilon, group_size=0, shuffle_scale=False",
    last="v0.1.15",
)
aiter.signature(
    "aiter.ops.rmsnorm.rmsnorm_quant",
    "out, input, scale, weight, epsilon, group_size=0, shuffle_scale=False, gemma_norm=False",
    first=AITER_HEAD,
)
aiter.signature(
    "aiter.ops.rmsnorm.add_rmsnorm_quant",
    _ADD_QUANT,
    last="v0.1.15",
)
aiter.signature(
    "aiter.ops.rmsnorm.add_rmsnorm_quant",
    f"{_ADD_QUANT}, gemma_norm=False",
    first=AITER_HEAD,
)


@aiter.function("aiter.ops.norm.layernorm2d_fwd", shown_in=_TOP)
def layernorm2d_fwd(
    input: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5, x_bias: Tensor | None = None
) -> Tensor:
    if x_bias is not None:
        raise MissingBodyError("aiter.ops.norm.layernorm2d_fwd with x_bias has no body in the simulation")
    return F.layer_norm(input, weight.shape, weight, bias, epsilon)


@aiter.function("aiter.ops.fused_qk_norm_rope_cache_quant.fused_qk_rmsnorm", first="v0.1.12", last="v0.1.13")
def fused_qk_rmsnorm(
    q: Tensor, q_weight: Tensor, q_eps: float, k: Tensor, k_weight: Tensor, k_eps: float
) -> tuple[Tensor, Tensor]:
    return rms_norm(q, q_weight, q_eps), rms_norm(k, k_weight, k_eps)


@aiter.function("aiter.ops.fused_qk_rmsnorm_group_quant.fused_qk_rmsnorm", first="v0.1.15")
def fused_qk_rmsnorm_quant(
    q_out_quantized: Tensor | None = None,
    q_out_scale: Tensor | None = None,
    q: Tensor | None = None,
    q_weight: Tensor | None = None,
    q_epsilon: float = 1e-6,
    q_out_unquantized: Tensor | None = None,
    k_out: Tensor | None = None,
    q_res_out: Tensor | None = None,
    k: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_epsilon: float | None = None,
    q_residual: Tensor | None = None,
    gemma_norm: bool = False,
    quant_type: QuantType | None = QuantType.No,
    group_size: int | None = None,
    transpose_scale: bool = False,
) -> None:
    if quant_type != QuantType.No or q_out_quantized is None or q is None or q_weight is None:
        raise MissingBodyError(f"aiter's fused_qk_rmsnorm with {quant_type!r} has no body in the simulation")
    # Without quantisation the real function hands on neither gemma_norm nor the residual
    # (ops/fused_qk_rmsnorm_group_quant.py:199).
    q_out_quantized.copy_(rms_norm(q, q_weight, q_epsilon))
    if k is not None and k_out is not None and k_weight is not None:
        k_out.copy_(rms_norm(k, k_weight, q_epsilon if k_epsilon is None else k_epsilon))


aiter.signature(
    "aiter.ops.fused_qknorm_idxrqknorm.fused_qknorm_idxrqknorm",
    "qkv, q_norm_weight, k_norm_weight, cos_sin_cache, positions, num_heads, num_kv_heads, rotary_dim, eps, "
    "index_q_norm_weight=None, index_k_norm_weight=None, num_index_heads=0, slot_mapping=None, kv_cache_k=None, "
    "kv_cache_v=None, index_cache=None, block_size=0, q_out=None, index_q_out=None, index_slot_mapping=None, "
    "kv_cache_dtype='auto', index_cache_dtype=None, k_scale=None, v_scale=None, asm_layout=False",
    shown_in=_TOP,
    first=AITER_HEAD,
)


@aiter.function("aiter.ops.rmsnorm.rms_norm_opus", first=AITER_HEAD)
def rms_norm_opus(
    out: Tensor, input: Tensor, weight: Tensor, epsilon: float, model_sensitive: int = 0, gemma_norm: bool = False
) -> None:
    assert weight.dtype == input.dtype, "rms_norm_opus: weight dtype must match input"
    out.copy_(rms_norm(input, weight.float() + gemma_norm, epsilon))


@aiter.function("aiter.ops.rmsnorm.rmsnorm2d_fwd_with_add_opus", first=AITER_HEAD)
def rmsnorm2d_fwd_with_add_opus(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
    gemma_norm: bool = False,
) -> None:
    assert residual_in.dtype == residual_out.dtype == weight.dtype == input.dtype, "residual dtype mismatch"
    _add_rms_norm(out, input, residual_in, residual_out, weight.float() + gemma_norm, epsilon)
