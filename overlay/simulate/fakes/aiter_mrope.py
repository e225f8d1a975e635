"""aiter's rotary embedding by three positions, fused with the query and key norms and the cache write.

The bodies address memory as the kernel does, because callers have relied on it: they work on raw elements, whatever
shape a cache has (csrc/kernels/fused_qk_norm_mrope_cache_quant.cu, csrc/kernels/rope/rope_common.h). What the real op
rejects is a RuntimeError here; what it would read or write outside a tensor is an IndexError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from overlay.simulate.fakes.aiter_norm import rms_norm
from overlay.simulate.fakes.aiter_rope import rotate
from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError
from overlay.simulate.settings import AITER_HEAD

_NAME = "aiter.ops.fused_qk_norm_mrope_cache_quant.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
_PARAMETERS = (
    "qkv, qw, kw, cos_sin, positions, num_tokens, num_heads_q, num_heads_k, num_heads_v, head_size, is_neox_style, "
    "mrope_section_, is_interleaved, eps, q_out, k_cache, v_cache, slot_mapping, per_tensor_k_scale, "
    "per_tensor_v_scale, k_out, v_out, return_kv, use_shuffle_layout, block_size, x"
)
aiter.signature(_NAME, _PARAMETERS, shown_in=("aiter",), last="v0.1.10.post3")


@aiter.function(_NAME, f"{_PARAMETERS}, rotary_dim=0", shown_in=("aiter",), first="v0.1.12", last="v0.1.15")
def with_packed_cache(
    qkv: Tensor,
    qw: Tensor,
    kw: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    **arguments: object,
) -> None:
    """Through v0.1.15: dtypes are checked, a cache is packed slots of heads. See `_body` for the arguments."""
    wanted = {qkv.dtype: (qw, kw, cos_sin), torch.int64: (positions, slot_mapping)}
    for dtype, tensors in wanted.items():
        for tensor in tensors:
            if tensor.dtype != dtype:
                raise RuntimeError(f"expected scalar type {dtype} but found {tensor.dtype}")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise RuntimeError("Expected k_cache.is_contiguous() && v_cache.is_contiguous() to be true")
    _body(qkv, qw, kw, cos_sin, positions, k_cache, v_cache, slot_mapping, by_stride=False, **arguments)  # type: ignore[arg-type]


@aiter.function(_NAME, f"{_PARAMETERS}, rotary_dim=0, gemma_norm=False", shown_in=("aiter",), first=AITER_HEAD)
def with_strided_cache(
    qkv: Tensor,
    qw: Tensor,
    kw: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    **arguments: object,
) -> None:
    """Since b0cc5392dd: a token's and a head's stride are those of a cache's dimensions 1 and 2. Since v0.1.16 a tensor
    of another dtype is read as what it should be. See `_body` for the arguments."""
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        raise RuntimeError("k_cache/v_cache must have unit element stride (innermost dim)")
    _body(qkv, qw, kw, cos_sin, positions, k_cache, v_cache, slot_mapping, by_stride=True, **arguments)  # type: ignore[arg-type]


def _body(
    qkv: Tensor,
    qw: Tensor,
    kw: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    by_stride: bool,
    num_tokens: int,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_size: int,
    is_neox_style: bool,
    mrope_section_: Sequence[int],
    is_interleaved: bool,
    eps: float,
    q_out: Tensor,
    per_tensor_k_scale: Tensor,
    per_tensor_v_scale: Tensor,
    k_out: Tensor | None,
    v_out: Tensor | None,
    return_kv: bool,
    use_shuffle_layout: bool,
    block_size: int,
    gemma_norm: bool = False,
    **_: object,
) -> None:
    """Norm and rotate queries and keys by positions in three dimensions; write the keys and values to their slots.

    `qkv` [tokens, heads, head size], `cos_sin` [positions, rotary], `positions` [3, tokens], `slot_mapping` [tokens]
    with -1 for none, scales of one element for an fp8 cache. Raises MissingBodyError for shuffled or paged addressing.
    """
    if use_shuffle_layout or block_size:
        raise MissingBodyError(f"{_NAME} with a shuffled or paged cache has no body in the simulation")
    if positions.dim() != 2:
        raise RuntimeError("Check failed: positions.dim() == 2")
    at = torch.arange(num_tokens)
    places = torch.stack(
        [_raw(positions, torch.int64)[axis * positions.stride(0) + at * positions.stride(1)] for axis in range(3)]
    )
    slots = _raw(slot_mapping, torch.int64)[at]
    q, k, v = torch.split(qkv.view(num_tokens, -1, head_size), [num_heads_q, num_heads_k, num_heads_v], 1)
    table = _raw(cos_sin, qkv.dtype)[: cos_sin.numel()].view_as(cos_sin)[places].float()
    cos, sin = (_sectioned(part, mrope_section_, is_interleaved)[:, None] for part in table.chunk(2, -1))
    q_weight, k_weight = (_raw(weight, qkv.dtype)[:head_size].float() + gemma_norm for weight in (qw, kw))
    q = rotate(rms_norm(q, q_weight, eps), cos, sin, is_neox_style)
    k = rotate(rms_norm(k, k_weight, eps), cos, sin, is_neox_style)
    q_out.copy_(q.view_as(q_out))
    for cache, new, scale in ((k_cache, k, per_tensor_k_scale), (v_cache, v, per_tensor_v_scale)):
        if cache.dtype != qkv.dtype:
            new = (new.float() / float(scale)).to(cache.dtype)
        token, head = (cache.stride(1), cache.stride(2)) if by_stride else (new.shape[1] * head_size, head_size)
        _write(cache, new, slots, token, head)
    if return_kv and k_out is not None and v_out is not None:
        k_out.copy_(k.view_as(k_out))
        v_out.copy_(v.reshape(v_out.shape))


def _raw(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory from a tensor's first element on, taken for elements of `dtype`."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    memory = torch.as_strided(tensor, (size,), (1,))
    return memory[: size - size % 2].view(dtype) if tensor.dtype != dtype else memory


def _write(cache: Tensor, new: Tensor, slots: Tensor, token_stride: int, head_stride: int) -> None:
    """Put `new` [tokens, heads, head size] at `slot * token_stride + head * head_stride`; a negative slot nowhere."""
    held = slots >= 0
    _, heads, size = new.shape
    offsets = (
        (slots[held] * token_stride)[:, None, None]
        + (torch.arange(heads) * head_stride)[:, None]
        + torch.arange(size)
    )  # fmt: skip
    memory, values = _raw(cache, cache.dtype), new[held]
    if cache.element_size() == 1:  # PyTorch has no indexed write of fp8
        memory, values = memory.view(torch.uint8), values.view(torch.uint8)
    memory[offsets] = values


def _sectioned(table: Tensor, sections: Sequence[int], interleaved: bool) -> Tensor:
    """[3, tokens, rotary / 2] to [tokens, rotary / 2]: which dimension's angle each frequency takes."""
    if not interleaved:
        return torch.cat([part[i] for i, part in enumerate(torch.split(table, list(sections), -1))], -1)
    mixed = table[0].clone()
    for dimension in (1, 2):
        taken = slice(dimension, sections[dimension] * 3, 3)
        mixed[:, taken] = table[dimension, :, taken]
    return mixed
