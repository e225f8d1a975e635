"""DeepSeek-V4's sparse attention of a decode: each token attends the keys that its indices name, in one pass.

A key is 512 elements, and is its own value: 448 in FP8 (e4m3) in seven tiles of 64 with a power-of-two scale each, then
64 rotary ones in bfloat16. Pages hold them as sglang writes them (0.5.13
deepseek_v4_memory_pool.py, `quant_to_nope_fp8_rope_bf16_pack`), for a page of B tokens::

    bytes 576 t .. 576 t + 448        448 e4m3
    bytes 576 t + 448 .. 576 t + 576  64 bfloat16
    bytes 576 B + 8 t .. + 7          the exponents of seven scales, biased by 127; an eighth byte is padding

A token's keys come from one or two scopes (the sliding window; what the indexer or the compressor chose), each with its
own pages. There is one softmax over both, to whose denominator `sink` adds one more logit that has no value.

Unlike upstream's gather, nothing is written to memory between; unlike its split-k form, nothing is combined afterwards.
That pays once there are enough tokens to fill the GPU (#26383: 10 to 14 % from 256 tokens on, MI355X).

Accuracy. A key is exact in bfloat16. Scores and sums are formed in float32; the weights of the softmax are rounded to
the dtype of `q` before they meet the values, as in upstream's kernels: an element of the output is within half a unit
in the last place of the definition, plus 2**-8 of the mean magnitude of its values in bfloat16 (2**-11 in float16),
plus, for the rounding of scores, 2**-21 of the largest sum of magnitudes that makes up one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device

HEAD_DIM = 512
BYTES_PER_KEY = 584
_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})


class Scope(NamedTuple):
    """Keys a query may attend.

    `pages` (pages, tokens a page, 1, 584) of one-byte elements, contiguous within a page; `indices` int32 (tokens,
    keys): positions in the flattened pages, negative where there is none; `lengths` int32 (requests,): how many of a
    row count, or None for all of them.
    """

    pages: Tensor
    indices: Tensor
    lengths: Tensor | None


@triton.jit  # type: ignore[untyped-decorator]
def _keys(
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    page_stride: tl.tensor,
    index: tl.tensor,
    valid: tl.tensor,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Keys [n, 512] in float32, zero where not `valid`."""
    d = tl.arange(0, 512)[None, :]
    page = (index // PAGE).to(tl.int64) * page_stride
    token = (index % PAGE).to(tl.int64)
    start = (page + token * 576)[:, None]
    is_key = valid[:, None]
    is_nope = is_key & (d < 448)
    nope = tl.load(bytes_ptr + start + d, mask=is_nope, other=0).to(tl.float8e4nv, bitcast=True).to(tl.float32)
    tile = (page + PAGE * 576 + token * 8)[:, None] + tl.arange(0, 8)[None, :]
    exponent = tl.load(bytes_ptr + tile, mask=is_key, other=127)
    # What has these eight bits as its exponent, and a mantissa of one. The padding's goes with the rotary elements.
    scale = (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (BLOCK_N, 8, 64)), (BLOCK_N, 512))
    rope = tl.load(halves_ptr + start // 2 + (d - 224), mask=is_key & (d >= 448), other=0.0).to(tl.float32)
    return tl.where(d < 448, nope * scale, rope)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    q: tl.tensor,
    total: tl.tensor,
    top: tl.tensor,
    denominator: tl.tensor,
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    page_stride: tl.tensor,
    row_ptr: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The running softmax after the keys of one scope. `scale` includes log2(e)."""
    for first in range(0, length, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        index = tl.load(row_ptr + n, mask=n < length, other=-1)
        valid = index >= 0
        keys = _keys(bytes_ptr, halves_ptr, page_stride, tl.maximum(index, 0), valid, PAGE, BLOCK_N).to(q.dtype)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A row that has seen no key yet: any finite number keeps exp2 from -inf - -inf.
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - pivot[:, None])
        decay = tl.exp2(top - pivot)
        denominator = denominator * decay + tl.sum(weights, axis=1)
        total = tl.dot(weights.to(q.dtype), keys, total * decay[:, None], input_precision="ieee")
        top = new_top
    return total, top, denominator


@triton.jit  # type: ignore[untyped-decorator]
def _decode_kernel(
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    q_ptr: tl.tensor,
    main_ptr: tl.tensor,
    main_halves_ptr: tl.tensor,
    main_indices_ptr: tl.tensor,
    main_lengths_ptr: tl.tensor,
    extra_ptr: tl.tensor,
    extra_halves_ptr: tl.tensor,
    extra_indices_ptr: tl.tensor,
    extra_lengths_ptr: tl.tensor,
    sink_ptr: tl.tensor,
    main_page_stride: tl.tensor,
    extra_page_stride: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    TOKENS_PER_REQUEST: tl.constexpr,
    MAIN_KEYS: tl.constexpr,
    EXTRA_KEYS: tl.constexpr,
    MAIN_PAGE: tl.constexpr,
    EXTRA_PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """BLOCK_H heads of one token. The heads of a token are neighbours in the grid: they read the same keys."""
    blocks: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    token = (tl.program_id(0) // blocks).to(tl.int64)
    request = token // TOKENS_PER_REQUEST
    h = (tl.program_id(0) % blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = h < H
    at = (token * H + h)[:, None] * 512 + tl.arange(0, 512)[None, :]
    q = tl.load(q_ptr + at, mask=is_head[:, None], other=0.0)

    total = tl.zeros((BLOCK_H, 512), tl.float32)
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    denominator = tl.zeros((BLOCK_H,), tl.float32)
    length = MAIN_KEYS
    if main_lengths_ptr is not None:
        length = tl.minimum(tl.load(main_lengths_ptr + request), MAIN_KEYS)
    total, top, denominator = _attend(
        q, total, top, denominator, main_ptr, main_halves_ptr, main_page_stride,
        main_indices_ptr + token * MAIN_KEYS, length, scale, MAIN_PAGE, BLOCK_N,
    )  # fmt: skip
    if extra_ptr is not None:
        length = EXTRA_KEYS
        if extra_lengths_ptr is not None:
            length = tl.minimum(tl.load(extra_lengths_ptr + request), EXTRA_KEYS)
        total, top, denominator = _attend(
            q, total, top, denominator, extra_ptr, extra_halves_ptr, extra_page_stride,
            extra_indices_ptr + token * EXTRA_KEYS, length, scale, EXTRA_PAGE, BLOCK_N,
        )  # fmt: skip

    lonely = denominator == 0.0
    # log2(e) and its reciprocal.
    lse = tl.where(lonely, float("inf"), (top + tl.log2(tl.where(lonely, 1.0, denominator))) * 0.6931471805599453)
    if sink_ptr is not None:
        sink = tl.load(sink_ptr + h, mask=is_head, other=0.0).to(tl.float32) * 1.4426950408889634
        denominator += tl.exp2(tl.where(lonely, 0.0, sink - top))
    out = tl.where(lonely[:, None], 0.0, total / tl.where(lonely, 1.0, denominator)[:, None])
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
    tl.store(lse_ptr + token * H + h, lse, mask=is_head)


class LaunchConfig(NamedTuple):
    """Heads and keys of one step of one program."""

    block_h: int
    block_n: int
    num_warps: int


def launch_config(heads: int) -> LaunchConfig:
    """The largest blocks of which the compiler keeps everything in registers, on gfx942 as well as on gfx950."""
    return LaunchConfig(16, 32, 4) if heads <= 16 else LaunchConfig(32, 16, 4)


def supports(q: Tensor, scopes: tuple[Scope, ...]) -> bool:
    """Whether `sparse_decode` takes these tensors."""
    tokens, _, width = q.shape
    return (
        width == HEAD_DIM
        and q.dtype in _DTYPES
        and 1 <= len(scopes) <= 2
        and all(_supports_scope(scope, tokens) for scope in scopes)
    )


def _supports_scope(scope: Scope, tokens: int) -> bool:
    pages, indices = scope.pages, scope.indices
    page_bytes = pages.shape[1] * BYTES_PER_KEY
    return (
        pages.element_size() == 1
        and pages.dim() == 4
        and pages.shape[2:] == (1, BYTES_PER_KEY)
        and pages.stride()[1:] == (BYTES_PER_KEY, BYTES_PER_KEY, 1)
        and pages.stride(0) >= page_bytes
        and pages.stride(0) % 2 == pages.storage_offset() % 2 == 0
        and indices.dtype == torch.int32
        and indices.shape[0] == tokens
        and (scope.lengths is None or scope.lengths.dtype == torch.int32)
    )


def sparse_decode(
    q: Tensor,
    scopes: tuple[Scope, ...],
    scale: float,
    sink: Tensor | None = None,
    tokens_per_request: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attention of q (T, H, 512) over one or two scopes of keys that `supports` takes.

    `scale` multiplies the scores; `sink` float32 (H,) or None; a length belongs to `tokens_per_request` rows of q.
    Returns the output (T, H, 512) in the dtype of q and the natural logarithm of the softmax's denominator without the
    sink, float32 (T, H). A token without any key gets zeros and +inf.
    """
    tokens, heads, _ = q.shape
    q = q.contiguous()
    out = torch.empty_like(q)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    if tokens == 0:
        return out, lse
    main, extra = scopes[0], scopes[1] if len(scopes) == 2 else None
    config = launch_config(heads)
    with device.guard(q.get_device()):
        _decode_kernel[(tokens * triton.cdiv(heads, config.block_h),)](
            out,
            lse,
            q,
            *_arguments(main),
            *(_arguments(extra) if extra else (None, None, None, None)),
            sink,
            main.pages.stride(0),
            extra.pages.stride(0) if extra else 0,
            scale * 1.4426950408889634,
            H=heads,
            TOKENS_PER_REQUEST=tokens_per_request,
            MAIN_KEYS=main.indices.shape[1],
            EXTRA_KEYS=extra.indices.shape[1] if extra else 0,
            MAIN_PAGE=main.pages.shape[1],
            EXTRA_PAGE=extra.pages.shape[1] if extra else 1,
            BLOCK_H=config.block_h,
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
            num_stages=1,
        )
    return out, lse


def _arguments(scope: Scope) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The pages as bytes and as bfloat16, the indices, the lengths."""
    rows = scope.pages.view(torch.uint8).flatten(1)
    return rows, rows.view(torch.bfloat16), scope.indices.contiguous(), scope.lengths
