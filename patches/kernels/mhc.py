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

from patches.kernels import device
from patches.kernels.sinkhorn import sinkhorn_4x4

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
    """``streams . fn^T`` in float32 for ``streams`` ``[m, i]`` in 16 bits and ``fn`` ``[k, i]`` in float32.

    A float32 has 24 significant bits, so three bfloat16 hold it; products of two bfloat16 are exact in float32.
    """
    if streams.dtype == tl.bfloat16:
        high = _upper_bits(fn)
        middle = _upper_bits(fn - high)
        low = fn - high - middle
        mixes = tl.dot(streams, tl.trans(low.to(tl.bfloat16)))
        mixes = tl.dot(streams, tl.trans(middle.to(tl.bfloat16)), mixes)
        return tl.dot(streams, tl.trans(high.to(tl.bfloat16)), mixes)
    return tl.dot(streams.to(tl.float32), tl.trans(fn), input_precision="ieee")


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
    """New streams of BLOCK_M tokens in one slice of the hidden dimension, and what the slice adds to their mixes."""
    split = tl.program_id(1)
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = split * BLOCK_C + tl.arange(0, BLOCK_C)
    is_token = m < num_tokens

    # Axes: token, stream, element. One axis of each tensor is 1, and the products below are the outer ones.
    row = m[:, None, None]
    j = tl.arange(0, 4)[None, :, None]
    is_row = is_token[:, None, None]
    element = c[None, None, :]
    is_element = is_row & (element < C)
    x = tl.load(x_ptr + row * x_stride + element, mask=is_element, other=0.0).to(tl.float32)
    stream = residual_ptr + row * (4 * C) + element
    stream0 = tl.load(stream, mask=is_element, other=0.0).to(tl.float32)
    stream1 = tl.load(stream + C, mask=is_element, other=0.0).to(tl.float32)
    stream2 = tl.load(stream + 2 * C, mask=is_element, other=0.0).to(tl.float32)
    stream3 = tl.load(stream + 3 * C, mask=is_element, other=0.0).to(tl.float32)
    comb = comb_ptr + row * 16 + j
    comb0 = tl.load(comb, mask=is_row, other=0.0)
    comb1 = tl.load(comb + 4, mask=is_row, other=0.0)
    comb2 = tl.load(comb + 8, mask=is_row, other=0.0)
    comb3 = tl.load(comb + 12, mask=is_row, other=0.0)
    post = tl.load(post_ptr + row * 4 + j, mask=is_row, other=0.0)
    exact = ((comb0 * stream0 + comb1 * stream1) + (comb2 * stream2 + comb3 * stream3)) + post * x
    streams = exact.to(residual_out_ptr.dtype.element_ty)
    tl.store(residual_out_ptr + row * (4 * C) + j * C + element, streams, mask=is_element)

    # What follows is defined on the rounded streams: they are what the stepwise path reads back.
    flat = tl.reshape(streams, (BLOCK_M, 4 * BLOCK_C))
    wide = flat.to(tl.float32)
    squares = tl.sum(wide * wide, axis=1)
    k = tl.arange(0, _PARTIAL)
    i = tl.arange(0, 4 * BLOCK_C)
    at = split * BLOCK_C + i % BLOCK_C
    column = ((i // BLOCK_C) * C + at).to(tl.int64)
    fn = tl.load(
        fn_ptr + k.to(tl.int64)[:, None] * fn_row_stride + column[None, :] * fn_column_stride,
        mask=(k < _SQUARES)[:, None] & (at < C)[None, :],
        other=0.0,
    )
    mixes = _mixed(flat, fn)
    found = tl.where((k == _SQUARES)[None, :], squares[:, None], mixes)
    rows = (split * num_tokens + m) * _PARTIAL
    tl.store(partial_ptr + rows[:, None] + k[None, :], found, mask=is_token[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _pre_weight(
    rows: tl.tensor, exists: tl.tensor, rstd: tl.tensor, scale: tl.tensor, base_ptr: tl.tensor, hc_eps: tl.tensor
) -> tl.tensor:
    """The weight of one stream; ``rows`` points to its mixes in all slices."""
    mix = tl.sum(tl.load(rows, mask=exists, other=0.0), axis=0)
    return tl.sigmoid(mix * rstd * scale + tl.load(base_ptr)) + hc_eps


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
    """One token: program 0 of the second axis makes post and comb, each of the others BLOCK_C of the layer's input.

    Sinkhorn's chain of dependent steps then runs beside the rest. With NORM there is one other program, for all of C.
    """
    m = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    splits = tl.arange(0, SPLITS_POW2)
    exists = splits < SPLITS
    rows = partial_ptr + (splits.to(tl.int64) * num_tokens + m) * _PARTIAL
    squares = tl.sum(tl.load(rows + _SQUARES, mask=exists, other=0.0), axis=0)
    rstd = tl.rsqrt(squares / (4 * C) + rms_eps)

    if part == 0:
        k = tl.arange(0, 16)
        mixes = tl.sum(tl.load(rows[:, None] + 8 + k[None, :], mask=exists[:, None], other=0.0), axis=0)
        logits = mixes * rstd * tl.load(scale_ptr + 2) + tl.load(base_ptr + 8 + k)
        tl.store(comb_ptr + m * 16 + k, sinkhorn_4x4(logits, hc_eps, ITERATIONS))
        j = tl.arange(0, 4)
        mixes = tl.sum(tl.load(rows[:, None] + 4 + j[None, :], mask=exists[:, None], other=0.0), axis=0)
        gate = tl.sigmoid(mixes * rstd * tl.load(scale_ptr + 1) + tl.load(base_ptr + 4 + j))
        tl.store(post_ptr + m * 4 + j, gate * post_mult)
    else:
        scale = tl.load(scale_ptr)
        pre0 = _pre_weight(rows, exists, rstd, scale, base_ptr, hc_eps)
        pre1 = _pre_weight(rows + 1, exists, rstd, scale, base_ptr + 1, hc_eps)
        pre2 = _pre_weight(rows + 2, exists, rstd, scale, base_ptr + 2, hc_eps)
        pre3 = _pre_weight(rows + 3, exists, rstd, scale, base_ptr + 3, hc_eps)
        c = (part - 1) * BLOCK_C + tl.arange(0, BLOCK_C)
        is_element = c < C
        streams = residual_ptr + m * (4 * C) + c
        y = (
            (pre0 * tl.load(streams, mask=is_element, other=0.0).to(tl.float32))
            + (pre1 * tl.load(streams + C, mask=is_element, other=0.0).to(tl.float32))
        ) + (
            (pre2 * tl.load(streams + 2 * C, mask=is_element, other=0.0).to(tl.float32))
            + (pre3 * tl.load(streams + 3 * C, mask=is_element, other=0.0).to(tl.float32))
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
    # The interpreter has no warps, and no driver to ask about them.
    warp_size = 32 if _INTERPRETED else triton.runtime.driver.active.get_current_target().warp_size
    return launch_config(hidden, norm, warp_size)


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
            tokens, x.stride(0), fn.stride(0), fn.stride(1),
            C=hidden, BLOCK_M=config.block_m, BLOCK_C=config.block_split, num_warps=config.post_warps,
        )  # fmt: skip
        _pre_kernel[(tokens, 1 + triton.cdiv(hidden, config.block_pre))](
            layer_input, post_out, comb_out, residual_out, partial, scale, base, weight,
            tokens, constants.rms_eps, constants.hc_eps, constants.post_mult, norm_eps,
            C=hidden, SPLITS=splits, SPLITS_POW2=triton.next_power_of_2(splits), ITERATIONS=constants.iterations,
            NORM=norm is not None, BLOCK_C=config.block_pre, num_warps=config.pre_warps,
        )  # fmt: skip
    return made
