"""DeepSeek-V4's manifold-constrained hyper-connections (mHC): the end of one sublayer and the start of the next, fused.

A token carries ``n = 4`` residual streams of ``C`` elements. After a sublayer ``post`` and ``comb`` mix its output
``x`` into them; before the next one ``fn`` derives from the streams the weights that fold them into one input, and the
``post`` and ``comb`` of the next time (arXiv 2512.24880; sglang 0.5.13 deepseek_v4.py:1206-1342)::

    residual'[j] = post[j] * x + sum_i comb[i, j] * residual[i]              rounded to the dtype of x
    mixes        = (fn . residual') * rsqrt(mean(residual'^2) + rms_eps)     24 = pre 4, post 4, comb 4x4
    pre          = sigmoid(scale[0] * mixes + base) + hc_eps
    post'        = sigmoid(scale[1] * mixes + base) * post_mult
    comb'        = sinkhorn(scale[2] * mixes + base)
    layer_input  = sum_i pre[i] * residual'[i]                               rounded to the dtype of x
    layer_input  = rms_norm(layer_input) * norm_weight                       where asked for, rounded again

Two kernels: the first reads ``fn`` (2.8 MB in float32 for C = 7168), which is most of the traffic of a small batch, in
slices of the hidden dimension; the second sums what the slices found. Nothing depends on the batch a token is in.

Accuracy. Sums are formed in float32, and ``fn`` is never rounded: in bfloat16 it is split exactly into three terms that
tensor cores multiply. For logits (``scale * mixes + base``) below 50 in magnitude ``post'`` and ``comb'`` are within
1e-5 of the definition in float64. ``residual'`` and ``layer_input`` are within half a unit in the last place of it,
plus 2**-20 of the sum of the magnitudes of their terms, plus for ``layer_input`` 1e-5 of the streams' magnitudes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device, tuning
from patches.kernels.sinkhorn import element, sinkhorn_4x4

STREAMS = 4
"""Residual streams (`hc_mult`) that the kernels are written for."""

MIXES = 2 * STREAMS + STREAMS * STREAMS
"""Rows of ``fn``: pre, post, comb."""

MAX_TOKENS = 64
"""Tokens of the largest batch that :func:`supports` takes. Prefill is larger, and better served by matrix products."""

_DTYPES = frozenset({torch.bfloat16, torch.float16})
#: What one slice found for one token, in float32: the mixes, the sum of squares, padding up to 128 bytes.
_PARTIAL = tl.constexpr(32)
_SQUARES = tl.constexpr(24)


@triton.jit  # type: ignore[untyped-decorator]
def _upper_bits(x: tl.tensor) -> tl.tensor:
    """``x`` (float32) cut off after the eight significant bits that a bfloat16 holds."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _mixed(streams: tl.tensor, fn: tl.tensor) -> tl.tensor:
    """``streams . fn^T`` in float32 for ``streams`` ``[j, m, c]`` in 16 bits and ``fn`` ``[j, k, c]`` in float32.

    A float32 has 24 significant bits, so three bfloat16 hold it; products of two bfloat16 are exact in float32.
    """
    fn = tl.trans(fn, (0, 2, 1))
    if streams.dtype == tl.bfloat16:
        high = _upper_bits(fn)
        middle = _upper_bits(fn - high)
        low = fn - high - middle
        mixes = tl.dot(streams, low.to(tl.bfloat16))
        mixes = tl.dot(streams, middle.to(tl.bfloat16), mixes)
        mixes = tl.dot(streams, high.to(tl.bfloat16), mixes)
    else:
        mixes = tl.dot(streams.to(tl.float32), fn, input_precision="ieee")
    return tl.sum(mixes, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(post: tl.tensor, comb: tl.tensor, is_token: tl.tensor) -> tl.tuple:
    """What ``x`` and each old stream weigh in one new stream; the pointers are to the first two of the five."""
    return (
        tl.load(post, mask=is_token, other=0.0),
        tl.load(comb, mask=is_token, other=0.0),
        tl.load(comb + 4, mask=is_token, other=0.0),
        tl.load(comb + 8, mask=is_token, other=0.0),
        tl.load(comb + 12, mask=is_token, other=0.0),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(old: tl.tuple, weights: tl.tuple) -> tl.tensor:
    """One new stream in float32 from ``x`` and the old streams."""
    mixed = (weights[1] * old[1] + weights[2] * old[2]) + (weights[3] * old[3] + weights[4] * old[4])
    return mixed + weights[0] * old[0]


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _post_kernel(
    residual_out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    num_tokens: tl.tensor,
    x_stride: tl.tensor,
    fn_row_stride: tl.tensor,
    fn_column_stride: tl.tensor,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """New streams of BLOCK_M tokens in one slice of the hidden dimension, and what the slice adds to their mixes.

    All loads come before anything that waits for one: together they take as long as one.
    """
    split = tl.program_id(1)
    elements = split * BLOCK_C + tl.arange(0, BLOCK_C)
    c = elements[None, :]
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    is_token = m < num_tokens
    is_element = is_token & (c < C)
    x = tl.load(x_ptr + m * x_stride + c, mask=is_element, other=0.0)
    at = m * (4 * C) + c
    old0 = tl.load(residual_ptr + at, mask=is_element, other=0.0)
    old1 = tl.load(residual_ptr + at + C, mask=is_element, other=0.0)
    old2 = tl.load(residual_ptr + at + 2 * C, mask=is_element, other=0.0)
    old3 = tl.load(residual_ptr + at + 3 * C, mask=is_element, other=0.0)
    post = post_ptr + m * 4
    comb = comb_ptr + m * 16
    weights0 = _weights(post, comb, is_token)
    weights1 = _weights(post + 1, comb + 1, is_token)
    weights2 = _weights(post + 2, comb + 2, is_token)
    weights3 = _weights(post + 3, comb + 3, is_token)
    j = tl.arange(0, 4)[:, None, None]
    k = tl.arange(0, _PARTIAL)
    column = j.to(tl.int64) * C + elements[None, None, :]
    fn = tl.load(
        fn_ptr + k.to(tl.int64)[None, :, None] * fn_row_stride + column * fn_column_stride,
        mask=(k < _SQUARES)[None, :, None] & (elements < C)[None, None, :],
        other=0.0,
    )

    old = (x.to(tl.float32), old0.to(tl.float32), old1.to(tl.float32), old2.to(tl.float32), old3.to(tl.float32))
    dtype = residual_out_ptr.dtype.element_ty
    new0 = _weighted(old, weights0).to(dtype)
    new1 = _weighted(old, weights1).to(dtype)
    new2 = _weighted(old, weights2).to(dtype)
    new3 = _weighted(old, weights3).to(dtype)
    tl.store(residual_out_ptr + at, new0, mask=is_element)
    tl.store(residual_out_ptr + at + C, new1, mask=is_element)
    tl.store(residual_out_ptr + at + 2 * C, new2, mask=is_element)
    tl.store(residual_out_ptr + at + 3 * C, new3, mask=is_element)

    # What follows is defined on the rounded streams: they are what the stepwise path reads back.
    streams = tl.join(tl.join(new0, new2), tl.join(new1, new3))
    streams = tl.reshape(tl.permute(streams, (2, 3, 0, 1)), (4, BLOCK_M, BLOCK_C))
    wide0, wide1, wide2, wide3 = new0.to(tl.float32), new1.to(tl.float32), new2.to(tl.float32), new3.to(tl.float32)
    squares = tl.sum((wide0 * wide0 + wide1 * wide1) + (wide2 * wide2 + wide3 * wide3), axis=1, keep_dims=True)
    mixes = _mixed(streams, fn)
    rows = partial_ptr + (split * num_tokens + m) * _PARTIAL
    tl.store(rows + k[None, :], mixes, mask=is_token & (k < _SQUARES)[None, :])
    tl.store(rows + _SQUARES, squares, mask=is_token)


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _pre_kernel(
    layer_input_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    norm_weight_ptr: tl.tensor,
    num_tokens: tl.tensor,
    rms_eps: tl.tensor,
    hc_eps: tl.tensor,
    post_mult: tl.tensor,
    norm_eps: tl.tensor,
    C: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_POW2: tl.constexpr,
    ITERATIONS: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One token: the first program of the second axis makes post and comb, the others BLOCK_C of the layer's input.

    Sinkhorn's chain of dependent steps then runs beside the rest. With NORM there is one other program, for all of C.
    """
    m = tl.program_id(0).to(tl.int64)
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    is_element = c < C  # none is one of the program that makes post and comb
    split = tl.arange(0, SPLITS_POW2)[:, None]
    k = tl.arange(0, _PARTIAL)
    rows = partial_ptr + (split.to(tl.int64) * num_tokens + m) * _PARTIAL + k[None, :]
    partial = tl.load(rows, mask=split < SPLITS, other=0.0)
    scale = tl.load(scale_ptr + tl.minimum(k // 4, 2))
    base = tl.load(base_ptr + k, mask=k < _SQUARES, other=0.0)
    streams = residual_ptr + m * (4 * C) + c
    stream0 = tl.load(streams, mask=is_element, other=0.0)
    stream1 = tl.load(streams + C, mask=is_element, other=0.0)
    stream2 = tl.load(streams + 2 * C, mask=is_element, other=0.0)
    stream3 = tl.load(streams + 3 * C, mask=is_element, other=0.0)

    mixes = tl.sum(partial, axis=0)
    rstd = tl.rsqrt(element(mixes, _SQUARES) / (4 * C) + rms_eps)
    logits = mixes * rstd * scale + base
    gates = tl.sigmoid(tl.where(k < 8, logits, 0.0))  # of pre and post

    if part == tl.num_programs(1) - 1:
        tl.store(post_ptr + m * 4 + k - 4, gates * post_mult, mask=(k >= 4) & (k < 8))
        comb = sinkhorn_4x4(logits, 8, hc_eps, ITERATIONS)
        tl.store(comb_ptr + m * 16 + tl.arange(0, 16), comb)
    else:
        y = (
            ((element(gates, 0) + hc_eps) * stream0.to(tl.float32))
            + ((element(gates, 1) + hc_eps) * stream1.to(tl.float32))
        ) + (
            ((element(gates, 2) + hc_eps) * stream2.to(tl.float32))
            + ((element(gates, 3) + hc_eps) * stream3.to(tl.float32))
        )
        dtype = layer_input_ptr.dtype.element_ty
        if NORM:
            y = y.to(dtype).to(tl.float32)
            y = y * tl.rsqrt(tl.sum(y * y, axis=0) / C + norm_eps)
            y = y * tl.load(norm_weight_ptr + c, mask=is_element, other=0.0).to(tl.float32)
        tl.store(layer_input_ptr + m * C + c, y.to(dtype), mask=is_element)


_INTERPRETED = not isinstance(_post_kernel, triton.JITFunction)
"""Whether Triton bound the kernels above to its CPU interpreter, which it decides when the decorator runs."""


class Constants(NamedTuple):
    """What a model fixes: the two eps, the factor of post and how often Sinkhorn normalises."""

    rms_eps: float
    hc_eps: float
    post_mult: float
    iterations: int


class Norm(NamedTuple):
    """The RMSNorm that follows: ``weight`` ``(C,)``, contiguous, of any floating dtype, and its eps."""

    weight: Tensor
    eps: float


class Boundary(NamedTuple):
    """What the next sublayer starts with; every tensor is fresh and contiguous."""

    residual: Tensor
    """``(tokens, 4, C)``, of ``x``'s dtype"""
    layer_input: Tensor
    """``(tokens, C)``, of ``x``'s dtype"""
    post: Tensor
    """``(tokens, 4)``, float32"""
    comb: Tensor
    """``(tokens, 4, 4)``, float32, [source, target]"""


class LaunchConfig(NamedTuple):
    """Shapes of the two kernels' programs, ``block_*`` in tokens and elements."""

    block_m: int
    block_split: int
    post_warps: int
    block_pre: int
    pre_warps: int


def launch_config(hidden: int, norm: bool, warp_size: int) -> LaunchConfig:
    """Programs for GPUs whose warps (AMD: waves) have ``warp_size`` threads.

    16 tokens are the least that a matrix instruction takes. 64 elements a slice give a batch of one token 64 programs
    for C = 4096 and 112 for C = 7168. The number of tokens plays no part, so a token's result does not depend on the
    batch it is in.
    """
    block_pre = triton.next_power_of_2(hidden) if norm else 1024
    pre_threads = 512 if norm else 128
    return LaunchConfig(16, 64, 128 // warp_size, block_pre, pre_threads // warp_size)


@functools.cache
def _current_config(hidden: int, norm: bool) -> LaunchConfig:
    if _INTERPRETED:  # it has no warps, and no driver to ask about them
        return launch_config(hidden, norm, 32)
    tuned = tuning.choice("mhc", f"c={hidden},norm={int(norm)}", tuning.current_arch())
    if tuned is not None:
        return LaunchConfig(block_m=16, **tuned)
    return launch_config(hidden, norm, triton.runtime.driver.active.get_current_target().warp_size)


def _is_float32(t: Tensor, shape: tuple[int, ...], x: Tensor) -> bool:
    return t.dtype == torch.float32 and t.shape == shape and t.is_contiguous() and t.device == x.device


def supports(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> bool:
    """Whether :func:`mhc_post_pre` takes such tensors. Reads metadata only."""
    if x.dim() != 2 or x.shape[0] > MAX_TOKENS or x.shape[1] == 0:
        return False
    tokens, hidden = x.shape
    return (
        (x.is_cuda or (_INTERPRETED and x.device.type == "cpu"))
        and x.dtype in _DTYPES
        and x.stride(1) == 1
        and residual.dtype == x.dtype
        and residual.shape == (tokens, STREAMS, hidden)
        and residual.is_contiguous()
        and residual.device == x.device
        and _is_float32(post, (tokens, STREAMS), x)
        and _is_float32(comb, (tokens, STREAMS, STREAMS), x)
        and fn.dtype == torch.float32
        and fn.shape == (MIXES, STREAMS * hidden)
        and fn.device == x.device
        and _is_float32(scale, (3,), x)
        and _is_float32(base, (MIXES,), x)
    )


#: Buffers by (device, stream): kernels of one stream follow each other, so that its calls can share one.
_scratch: dict[tuple[int, int], Tensor] = {}


def _partials(x: Tensor, size: int) -> Tensor:
    """``size`` float32 that nobody else uses until the kernels of this call have run.

    A graph that is being captured gets them from its own pool: it may be replayed on another stream than this one.
    """
    index = x.get_device()
    on_gpu = index >= 0
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return torch.empty(size, dtype=torch.float32, device=x.device)
    key = index, torch.cuda.current_stream(index).cuda_stream if on_gpu else 0
    held = _scratch.get(key)
    if held is None or held.numel() < size:
        held = _scratch[key] = torch.empty(size, dtype=torch.float32, device=x.device)
    return held


def mhc_post_pre(
    x: Tensor,
    residual: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    constants: Constants,
    norm: Norm | None = None,
) -> Boundary:
    """Mix a sublayer's output into the residual streams and form the input of the next sublayer.

    Call it where :func:`supports` is true for the same tensors: it does not check them again. It neither waits for the
    GPU nor allocates outside torch's allocator, so a CUDA or HIP graph can capture it. No input is written.

    Args:
        x: ``(tokens, C)``, adjacent elements, bfloat16 or float16: what the sublayer made.
        residual: ``(tokens, 4, C)``, contiguous, of ``x``'s dtype.
        post: ``(tokens, 4)``, contiguous, float32.
        comb: ``(tokens, 4, 4)``, contiguous, float32, [source, target].
        fn: ``(24, 4 C)``, float32, any strides, of the next sublayer; as are
        scale: ``(3,)``, float32, of pre, post and comb, and
        base: ``(24,)``, float32.
        constants: of the model.
        norm: applied to ``layer_input``; None leaves it to the caller.
    """
    tokens, hidden = x.shape
    residual_out = torch.empty((tokens, STREAMS, hidden), dtype=x.dtype, device=x.device)
    layer_input = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    post_out = torch.empty((tokens, STREAMS), dtype=torch.float32, device=x.device)
    comb_out = torch.empty((tokens, STREAMS, STREAMS), dtype=torch.float32, device=x.device)
    made = Boundary(residual_out, layer_input, post_out, comb_out)
    if tokens == 0:
        return made
    config = _current_config(hidden, norm is not None)
    splits = triton.cdiv(hidden, config.block_split)
    partial = _partials(x, splits * tokens * _PARTIAL.value)
    weight, norm_eps = (base, 0.0) if norm is None else norm
    with device.guard(x.get_device()):
        _post_kernel[(triton.cdiv(tokens, config.block_m), splits)](
            residual_out, partial, x, residual, post, comb, fn,
            tokens, x.stride(0) if tokens > 1 else hidden, fn.stride(0), fn.stride(1),
            C=hidden, BLOCK_M=config.block_m, BLOCK_C=config.block_split, num_warps=config.post_warps,
        )  # fmt: skip
        _pre_kernel[(tokens, 1 + triton.cdiv(hidden, config.block_pre))](
            layer_input, post_out, comb_out, residual_out, partial, scale, base, weight,
            tokens, constants.rms_eps, constants.hc_eps, constants.post_mult, norm_eps,
            C=hidden, SPLITS=splits, SPLITS_POW2=triton.next_power_of_2(splits), ITERATIONS=constants.iterations,
            NORM=norm is not None, BLOCK_C=config.block_pre, num_warps=config.pre_warps,
        )  # fmt: skip
    return made
