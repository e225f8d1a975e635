"""Attention prologue of Qwen3-VL decode in one Triton kernel: QKV split, QK RMSNorm, 3-D mRoPE and KV-cache write.

For every token ``t`` of a packed projection ``qkv``, with RMSNorm over each head and rotary angles taken from three
position axes (time, height, width)::

    q_out[t]               = rope(norm(q[t], q_weight), positions[:, t])
    k_cache[slots[t]]      = rope(norm(k[t], k_weight), positions[:, t])
    v_cache[slots[t]]      = v[t]

It rounds where SGLang's stepwise path does, and nowhere else: the norm is formed in float32 and rounded to the dtype of
``qkv``; the rotation takes the rounded values, is formed in float32 and rounded once, by the store. V is copied bit by
bit. A rotated element differs from that definition only where the float32 norm lies on a tie between two 16-bit values.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device, tuning

HEAD_SIZES = (64, 128, 256)
"""Head sizes that the kernel is written for, in elements."""

_DTYPES = frozenset({torch.bfloat16, torch.float16})


@triton.jit  # type: ignore[untyped-decorator]
def _select_axis(
    time: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    SECTION_W: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
) -> tl.tensor:
    """Per rotary frequency, the value that belongs to its position axis; the three are ``[1, HALF]``."""
    i = tl.arange(0, HALF)[None, :]
    if INTERLEAVED:
        is_height = (i % 3 == 1) & (i < 3 * SECTION_H)
        is_width = (i % 3 == 2) & (i < 3 * SECTION_W)
    else:
        is_height = (i >= SECTION_T) & (i < SECTION_T + SECTION_H)
        is_width = i >= SECTION_T + SECTION_H
    return tl.where(is_height, height, tl.where(is_width, width, time))


@triton.jit  # type: ignore[untyped-decorator]
def _load_pairs(ptr: tl.tensor, mask: tl.tensor, D: tl.constexpr, NEOX: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The two ``[rows, D / 2]`` members of the pairs that one angle rotates; ``ptr`` and ``mask`` are ``[rows, 1]``."""
    HALF: tl.constexpr = D // 2
    if NEOX:
        i = tl.arange(0, HALF)[None, :]
        return tl.load(ptr + i, mask=mask, other=0.0), tl.load(ptr + HALF + i, mask=mask, other=0.0)
    # Loaded as they lie and taken apart in registers: each member alone would be loaded two bytes at a time.
    whole = tl.load(ptr + tl.arange(0, D)[None, :], mask=mask, other=0.0)
    first, second = tl.split(tl.reshape(whole, (whole.shape[0], HALF, 2)))
    return first, second


@triton.jit  # type: ignore[untyped-decorator]
def _store_pairs(
    ptr: tl.tensor, first: tl.tensor, second: tl.tensor, mask: tl.tensor, D: tl.constexpr, NEOX: tl.constexpr
) -> None:
    """The inverse of ``_load_pairs``."""
    HALF: tl.constexpr = D // 2
    if NEOX:
        i = tl.arange(0, HALF)[None, :]
        tl.store(ptr + i, first, mask=mask)
        tl.store(ptr + HALF + i, second, mask=mask)
    else:
        whole = tl.reshape(tl.join(first, second), (first.shape[0], D))
        tl.store(ptr + tl.arange(0, D)[None, :], whole, mask=mask)


# The strides of positions follow the batch: graph buffers are slices of wider ones, and a text-only batch may be one
# row expanded with stride 0; so does where positions and slots start, of which single elements are read. Specialised,
# they would compile the kernel again in the middle of serving. The strides of the caches are the model's, and knowing
# that 16 divides them makes the stores wide.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["position_axis_stride", "position_token_stride"],
    do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"],
)
def _qk_norm_mrope_kernel(
    q_out_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    q_weight_ptr: tl.tensor,
    k_weight_ptr: tl.tensor,
    cos_sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    position_axis_stride: tl.tensor,
    position_token_stride: tl.tensor,
    k_slot_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_head_stride: tl.tensor,
    eps: tl.tensor,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    SECTION_T: tl.constexpr,
    SECTION_H: tl.constexpr,
    SECTION_W: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    HALF: tl.constexpr = D // 2
    Q_GROUPS: tl.constexpr = (NUM_Q_HEADS + HEADS - 1) // HEADS
    KV_GROUPS: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    token = tl.program_id(0).to(tl.int64)  # 64 bits: offsets into qkv and the caches pass 2**31
    group = tl.program_id(1)
    is_q = group < Q_GROUPS
    is_v = group >= Q_GROUPS + KV_GROUPS

    # A group never mixes queries, keys and values, so that a program takes one branch.
    own_group = group - tl.where(is_q, 0, tl.where(is_v, Q_GROUPS + KV_GROUPS, Q_GROUPS))
    head = own_group * HEADS + tl.arange(0, HEADS)[:, None]
    mask = head < tl.where(is_q, NUM_Q_HEADS, NUM_KV_HEADS)
    before = tl.where(is_q, 0, tl.where(is_v, NUM_Q_HEADS + NUM_KV_HEADS, NUM_Q_HEADS))
    row = token * ((NUM_Q_HEADS + 2 * NUM_KV_HEADS) * D) + (before + head) * D
    first, second = _load_pairs(qkv_ptr + row, mask, D, NEOX)
    slot = tl.load(slots_ptr + token).to(tl.int64)

    if is_v:
        _store_pairs(
            v_cache_ptr + slot * v_slot_stride + head * v_head_stride, first, second, mask & (slot >= 0), D, NEOX
        )
    else:
        i = tl.arange(0, HALF)[None, :]
        at = positions_ptr + token * position_token_stride
        # All three rows are read, as vectors, and the axis is chosen in registers: choosing the row per frequency would
        # read two bytes at a time.
        t_row = cos_sin_ptr + tl.load(at).to(tl.int64) * D + i
        h_row = cos_sin_ptr + tl.load(at + position_axis_stride).to(tl.int64) * D + i
        w_row = cos_sin_ptr + tl.load(at + 2 * position_axis_stride).to(tl.int64) * D + i
        cos = _select_axis(
            tl.load(t_row), tl.load(h_row), tl.load(w_row),
            SECTION_T, SECTION_H, SECTION_W, INTERLEAVED, HALF,
        ).to(tl.float32)  # fmt: skip
        sin = _select_axis(
            tl.load(t_row + HALF), tl.load(h_row + HALF), tl.load(w_row + HALF),
            SECTION_T, SECTION_H, SECTION_W, INTERLEAVED, HALF,
        ).to(tl.float32)  # fmt: skip

        weight_ptr = q_weight_ptr if is_q else k_weight_ptr
        no_mask = tl.full((1, 1), True, tl.int1)
        first_weight, second_weight = _load_pairs(weight_ptr + tl.zeros((1, 1), tl.int32), no_mask, D, NEOX)

        dtype = qkv_ptr.dtype.element_ty
        a = first.to(tl.float32)
        b = second.to(tl.float32)
        mean_square = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1))[:, None] / D
        rstd = tl.rsqrt(mean_square + eps)
        a = (a * rstd * first_weight.to(tl.float32)).to(dtype).to(tl.float32)
        b = (b * rstd * second_weight.to(tl.float32)).to(dtype).to(tl.float32)
        first = (a * cos - b * sin).to(dtype)
        second = (b * cos + a * sin).to(dtype)
        if is_q:
            _store_pairs(q_out_ptr + token * (NUM_Q_HEADS * D) + head * D, first, second, mask, D, NEOX)
        else:
            _store_pairs(
                k_cache_ptr + slot * k_slot_stride + head * k_head_stride, first, second, mask & (slot >= 0), D, NEOX
            )


_INTERPRETED = not isinstance(_qk_norm_mrope_kernel, triton.JITFunction)
"""Whether Triton bound the kernel above to its CPU interpreter, which it decides when the decorator runs."""


class Geometry(NamedTuple):
    """What one attention layer fixes for every call.

    ``mrope_section`` counts the rotary frequencies of the time, height and width axis: they sum to half of
    ``head_size``. ``interleaved`` deals the axes out in turn (Qwen3-VL) instead of in three runs (Qwen2-VL).
    ``neox`` rotates element ``i`` with ``i + head_size / 2``, else ``2 i`` with ``2 i + 1``.
    """

    num_q_heads: int
    num_kv_heads: int
    head_size: int
    mrope_section: tuple[int, int, int]
    interleaved: bool
    neox: bool
    eps: float

    @property
    def row_size(self) -> int:
        """Elements of one token in the packed projection."""
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head_size


class LaunchConfig(NamedTuple):
    """Shape of one program: a group of ``heads`` heads of one token, worked on by ``num_warps`` warps."""

    heads: int
    num_warps: int


def launch_config(geometry: Geometry, warp_size: int) -> LaunchConfig:
    """The heads and warps of one program on a GPU whose warps (AMD: waves) have ``warp_size`` threads.

    Decode is a few tokens, so the kernel's time is the latency of one program: 128 threads with 4 to 8 elements each
    were faster up to 64 tokens than fewer threads with 16-byte accesses, which win from 256 tokens on (H200: 1.4
    against 1.8 us at 1 token, 3.8 against 2.9 at 256). Fewer heads a program repeat the loads of the angles, more wait
    longer. The number of tokens plays no part, so a token's result does not depend on the batch it is in.
    """
    most = max(geometry.num_q_heads, geometry.num_kv_heads)
    heads = min(max(4, 512 // geometry.head_size), triton.next_power_of_2(most))
    threads = min(128, heads * geometry.head_size // 4)
    return LaunchConfig(heads, num_warps=max(1, threads // warp_size))


def shape_class(geometry: Geometry) -> str:
    """The class that `tuned/` has configurations for."""
    return f"q={geometry.num_q_heads},kv={geometry.num_kv_heads},d={geometry.head_size}"


@functools.cache
def _current_config(geometry: Geometry) -> LaunchConfig:
    if _INTERPRETED:  # it has no warps, and no driver to ask about them
        return launch_config(geometry, 32)
    tuned = tuning.choice("qk_norm_mrope", shape_class(geometry), tuning.current_arch())
    if tuned is not None:
        return LaunchConfig(**tuned)
    return launch_config(geometry, triton.runtime.driver.active.get_current_target().warp_size)


@functools.cache
def _current_launch(geometry: Geometry) -> tuple[LaunchConfig, int]:
    config = _current_config(geometry)
    groups = triton.cdiv(geometry.num_q_heads, config.heads) + 2 * triton.cdiv(geometry.num_kv_heads, config.heads)
    return config, groups


def supports_geometry(geometry: Geometry) -> bool:
    """Whether the kernel is written for such a layer."""
    return (
        geometry.head_size in HEAD_SIZES
        and geometry.num_q_heads > 0
        and geometry.num_kv_heads > 0
        and min(geometry.mrope_section) >= 0
        and sum(geometry.mrope_section) == geometry.head_size // 2
    )


def _is_cache(t: Tensor, qkv: Tensor, geometry: Geometry) -> bool:
    return (
        t.dtype == qkv.dtype
        and t.dim() == 3
        and t.shape[1] == geometry.num_kv_heads
        and t.shape[2] == geometry.head_size
        and t.stride(2) == 1
        and t.device == qkv.device
    )


def _is_weight(t: Tensor, qkv: Tensor, geometry: Geometry) -> bool:
    return t.dtype == qkv.dtype and t.shape == (geometry.head_size,) and t.is_contiguous() and t.device == qkv.device


def supports_batch(x: Tensor, positions: Tensor, slots: Tensor) -> bool:
    """Whether the positions and slots of a batch are such as :func:`qk_norm_mrope` reads.

    ``x`` is any tensor of the batch's device with a token a row; the projection's input will do.
    """
    tokens = x.shape[0]
    return (
        tokens > 0
        and positions.dtype == torch.int64
        and positions.shape == (3, tokens)
        and positions.device == x.device
        and slots.dtype == torch.int64
        and slots.shape == (tokens,)
        and slots.is_contiguous()
        and slots.device == x.device
    )


def supports_tensors(
    geometry: Geometry,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> bool:
    """Whether :func:`qk_norm_mrope` reads and writes such tensors, for a geometry that is supported."""
    return (
        (qkv.is_cuda or (_INTERPRETED and qkv.device.type == "cpu"))
        and qkv.dtype in _DTYPES
        and qkv.dim() == 2
        and qkv.shape[1] == geometry.row_size
        and qkv.is_contiguous()
        and _is_weight(q_weight, qkv, geometry)
        and _is_weight(k_weight, qkv, geometry)
        and cos_sin.dtype == qkv.dtype
        and cos_sin.dim() == 2
        and cos_sin.shape[1] == geometry.head_size
        and cos_sin.is_contiguous()
        and cos_sin.device == qkv.device
        and _is_cache(k_cache, qkv, geometry)
        and _is_cache(v_cache, qkv, geometry)
    )


def qk_norm_mrope(
    geometry: Geometry,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """Normalised and rotated queries; the keys and values of the same tokens go to their cache slots.

    Call it where :func:`supports_geometry`, :func:`supports_tensors` and :func:`supports_batch`, which read metadata
    only, are true for the same arguments: it does not check them again. It neither waits for the GPU nor allocates
    outside torch's allocator, so a CUDA or HIP graph can capture it.

    Args:
        geometry: of the layer, accepted by :func:`supports_geometry`.
        qkv: ``(tokens, (q_heads + 2 kv_heads) * head_size)``, contiguous, bfloat16 or float16: queries, keys, values.
        q_weight: ``(head_size,)``, contiguous, of ``qkv``'s dtype.
        k_weight: like ``q_weight``.
        cos_sin: ``(max_position, head_size)``, contiguous, of ``qkv``'s dtype: cosines, then sines. Rows that
            ``positions`` names must exist; nothing checks them.
        positions: ``(3, tokens)``, int64, any strides, also 0.
        k_cache: ``(slots, kv_heads, head_size)``, adjacent elements, of ``qkv``'s dtype; written in place.
        v_cache: like ``k_cache``.
        slots: ``(tokens,)``, contiguous, int64. A token with a negative slot gets its queries and is not cached.

    Returns:
        ``(tokens, q_heads * head_size)``, contiguous, of ``qkv``'s dtype.
    """
    tokens = qkv.shape[0]
    num_q_heads, num_kv_heads, head_size, sections, interleaved, neox, eps = geometry
    q_out = torch.empty((tokens, num_q_heads * head_size), dtype=qkv.dtype, device=qkv.device)
    (heads, num_warps), groups = _current_launch(geometry)
    index = qkv.get_device()  # -1 on the CPU
    with device.guard(index):
        _qk_norm_mrope_kernel[(tokens, groups)](
            q_out, k_cache, v_cache, qkv, q_weight, k_weight, cos_sin, positions, slots,
            positions.stride(0), positions.stride(1),
            k_cache.stride(0), k_cache.stride(1), v_cache.stride(0), v_cache.stride(1), eps,
            NUM_Q_HEADS=num_q_heads, NUM_KV_HEADS=num_kv_heads, D=head_size,
            SECTION_T=sections[0], SECTION_H=sections[1], SECTION_W=sections[2],
            INTERLEAVED=interleaved, NEOX=neox, HEADS=heads, num_warps=num_warps,
        )  # fmt: skip
    return q_out
