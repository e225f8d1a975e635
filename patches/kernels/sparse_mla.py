"""DeepSeek-V4's sparse attention of a decode: each token attends the keys that its indices name, in one pass.

A key is 512 elements, and is its own value: 448 in FP8 (e4m3fn; on MI300 e4m3fnuz) in seven tiles of 64 with a
power-of-two scale each, then 64 rotary ones in bfloat16. Pages hold them as sglang writes them (0.5.13
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

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device, tuning

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
def _places(index: tl.tensor, page_stride: tl.tensor, PAGE: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The bytes at which keys [n] start, and at which their exponents do."""
    page = (index // PAGE).to(tl.int64) * page_stride
    token = (index % PAGE).to(tl.int64)
    return page + token * 576, page + PAGE * 576 + token * 8


@triton.jit  # type: ignore[untyped-decorator]
def _keys(
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    start: tl.tensor,
    exponents: tl.tensor,
    valid: tl.tensor,
    BLOCK_N: tl.constexpr,
    FNUZ: tl.constexpr,
) -> tl.tensor:
    """Keys [n, 512] in float32, zero where not `valid`."""
    d = tl.arange(0, 512)[None, :]
    is_key = valid[:, None]
    bits = tl.load(bytes_ptr + start[:, None] + d, mask=is_key & (d < 448), other=0)
    if FNUZ:
        # A float16 with these bits for its sign, exponent and mantissa has 2**-7 of the value, subnormals as well.
        # -0 is e4m3fnuz's NaN.
        half = ((bits.to(tl.int16) & 0x80) << 8) | ((bits.to(tl.int16) & 0x7F) << 7)
        nope = half.to(tl.float16, bitcast=True).to(tl.float32) * 128.0
        nope = tl.where(bits == 0x80, float("nan"), nope)
    else:
        nope = bits.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    exponent = tl.load(bytes_ptr + exponents[:, None] + tl.arange(0, 8)[None, :], mask=is_key, other=127)
    # What has these eight bits as its exponent, and a mantissa of one. The padding's goes with the rotary elements.
    scale = (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (BLOCK_N, 8, 64)), (BLOCK_N, 512))
    # Read as the 64 that they are and repeated: 512 of which most are masked would take eight times the registers.
    rope = tl.load(halves_ptr + (start // 2)[:, None] + (224 + tl.arange(0, 64))[None, :], mask=is_key, other=0.0)
    rope = tl.reshape(tl.broadcast_to(rope[:, None, :], (BLOCK_N, 8, 64)), (BLOCK_N, 512))
    return tl.where(d < 448, nope * scale, rope.to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _length(lengths_ptr: tl.tensor, request: tl.tensor, keys: tl.tensor) -> tl.tensor:
    """How many of a row's keys count."""
    length = keys
    if lengths_ptr is not None:
        length = tl.maximum(tl.minimum(tl.load(lengths_ptr + request), keys), 0)
    return length


# How many keys a row of indices holds follows the longest request of a batch, and a batch's indices and lengths start
# anywhere in wider buffers. Specialised, they would compile the kernel again in the middle of serving.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["tokens_per_request", "main_keys", "extra_keys"],
    do_not_specialize_on_alignment=[
        "main_indices_ptr", "main_lengths_ptr", "extra_indices_ptr", "extra_lengths_ptr", "sink_ptr"
    ],
)  # fmt: skip
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
    tokens_per_request: tl.tensor,
    main_keys: tl.tensor,
    extra_keys: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    MAIN_PAGE: tl.constexpr,
    EXTRA_PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FNUZ: tl.constexpr,
) -> None:
    """BLOCK_H heads of one token. The heads of a token are neighbours in the grid: they read the same keys.

    `scale` includes log2(e).
    """
    blocks: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    token = (tl.program_id(0) // blocks).to(tl.int64)
    request = token // tokens_per_request
    h = (tl.program_id(0) % blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = h < H
    at = (token * H + h)[:, None] * 512 + tl.arange(0, 512)[None, :]
    q = tl.load(q_ptr + at, mask=is_head[:, None], other=0.0)

    main_row = main_indices_ptr + token * main_keys
    main_length = _length(main_lengths_ptr, request, main_keys)
    main_steps = tl.cdiv(main_length, BLOCK_N)
    steps = main_steps
    if extra_ptr is not None:
        extra_row = extra_indices_ptr + token * extra_keys
        extra_length = _length(extra_lengths_ptr, request, extra_keys)
        steps += tl.cdiv(extra_length, BLOCK_N)

    # The running softmax. One loop goes through both scopes: a loop for each has the compiler spill what they share.
    total = tl.zeros((BLOCK_H, 512), tl.float32)
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    denominator = tl.zeros((BLOCK_H,), tl.float32)
    for step in range(steps):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        if extra_ptr is None:
            index = tl.load(main_row + n, mask=n < main_length, other=-1)
            start, exponents = _places(tl.maximum(index, 0), main_page_stride, MAIN_PAGE)
            bytes_ptr, halves_ptr = main_ptr, main_halves_ptr
        else:
            is_main = step < main_steps
            n -= tl.where(is_main, 0, main_steps * BLOCK_N)
            row = tl.where(is_main, main_row, extra_row)
            index = tl.load(row + n, mask=n < tl.where(is_main, main_length, extra_length), other=-1)
            start, exponents = _places(tl.maximum(index, 0), main_page_stride, MAIN_PAGE)
            extra_start, extra_exponents = _places(tl.maximum(index, 0), extra_page_stride, EXTRA_PAGE)
            start = tl.where(is_main, start, extra_start)
            exponents = tl.where(is_main, exponents, extra_exponents)
            bytes_ptr = tl.where(is_main, main_ptr, extra_ptr)
            halves_ptr = tl.where(is_main, main_halves_ptr, extra_halves_ptr)
        valid = index >= 0
        keys = _keys(bytes_ptr, halves_ptr, start, exponents, valid, BLOCK_N, FNUZ).to(q.dtype)
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

    lonely = denominator == 0.0
    # log2(e) and its reciprocal.
    lse = tl.where(lonely, float("inf"), (top + tl.log2(tl.where(lonely, 1.0, denominator))) * 0.6931471805599453)
    if sink_ptr is not None:
        sink = tl.load(sink_ptr + h, mask=is_head, other=0.0).to(tl.float32) * 1.4426950408889634
        denominator += tl.exp2(tl.where(lonely, 0.0, sink - top))
    out = total * tl.where(lonely, 0.0, 1.0 / tl.where(lonely, 1.0, denominator))[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
    tl.store(lse_ptr + token * H + h, lse, mask=is_head)


_INTERPRETED = not isinstance(_decode_kernel, triton.JITFunction)
"""Whether Triton bound the kernel above to its CPU interpreter, which it decides when the decorator runs."""


class LaunchConfig(NamedTuple):
    """Heads and keys of one step of one program, and how many steps are in flight."""

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int


def launch_config(heads: int, itemsize: int = 2) -> LaunchConfig:
    """The largest blocks that the compiler keeps in registers and in 64 KiB of shared memory, on gfx942 and gfx950.

    `itemsize` is that of q, in bytes.
    """
    if heads <= 16:
        return LaunchConfig(16, 32, 4, 1)
    return LaunchConfig(64, 16, 8, 1) if itemsize == 2 else LaunchConfig(32, 16, 4, 1)


@functools.cache
def _current_config(heads: int, itemsize: int = 2) -> LaunchConfig:
    """What was tuned is for two bytes, in which models are served: four need twice the memory."""
    tuned = None
    if itemsize == 2 and not _INTERPRETED:
        tuned = tuning.choice("sparse_mla", shape_class(heads), tuning.current_arch())
    return launch_config(heads, itemsize) if tuned is None else LaunchConfig(**tuned)


def shape_class(heads: int) -> str:
    """The class that `tuned/` has configurations for."""
    return "h<=16" if heads <= 16 else "h>16"


@functools.cache
def _writes_fnuz(index: int) -> bool:
    """Whether sglang packs pages in e4m3fnuz on a device (`is_fp8_fnuz`, fp8_kernel.py): MI300's format, no other's."""
    if index < 0 or torch.version.hip is None:
        return False
    return bool(torch.cuda.get_device_properties(index).gcnArchName.startswith("gfx94"))


def is_fnuz(pages: Tensor) -> bool:
    """Whether the FP8 elements of pages are e4m3fnuz, which has half the value of e4m3fn's same bits and another NaN.

    Pages of bytes do not say: they are what sglang writes on their device.
    """
    if pages.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        return pages.dtype == torch.float8_e4m3fnuz
    return _writes_fnuz(pages.get_device())


def supports(q: Tensor, scopes: tuple[Scope, ...]) -> bool:
    """Whether `sparse_decode` takes these tensors."""
    tokens, _, width = q.shape
    return (
        width == HEAD_DIM
        and q.dtype in _DTYPES
        and 1 <= len(scopes) <= 2
        and all(_supports_scope(scope, tokens) and is_fnuz(scope.pages) == is_fnuz(scopes[0].pages) for scope in scopes)
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
    config = _current_config(heads, q.element_size())
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
            tokens_per_request,
            main.indices.shape[1],
            extra.indices.shape[1] if extra else 0,
            scale * 1.4426950408889634,
            H=heads,
            MAIN_PAGE=main.pages.shape[1],
            EXTRA_PAGE=extra.pages.shape[1] if extra else 1,
            BLOCK_H=config.block_h,
            BLOCK_N=config.block_n,
            FNUZ=is_fnuz(main.pages),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return out, lse


def _arguments(scope: Scope) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The pages as bytes and as bfloat16, the indices, the lengths."""
    rows = scope.pages.view(torch.uint8).flatten(1)
    return rows, rows.view(torch.bfloat16), scope.indices.contiguous(), scope.lengths
