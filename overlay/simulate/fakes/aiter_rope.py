"""aiter's rotary embedding by one position."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError


def rotate(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """Rotate the first `2 * cos.shape[-1]` elements of each head: as halves (NeoX) or as pairs (GPT-J).

    `x` [tokens, heads, head size] in any float dtype, `cos` and `sin` [tokens, 1, rotary / 2] in fp32.
    """
    turned, kept = x[..., : 2 * cos.shape[-1]].float(), x[..., 2 * cos.shape[-1] :]
    if is_neox:
        a, b = turned.chunk(2, -1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([rotated.to(x.dtype), kept], -1)


class RotaryEmbedding(torch.nn.Module):
    """Stands for aiter's class of that name: the tables sglang reads, and the call."""

    cos_cache: Tensor
    sin_cache: Tensor

    def __init__(
        self, head_size: int, rotary_dim: int, max_position: int, base: float, is_neox_style: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style, self.dtype = head_size, rotary_dim, is_neox_style, dtype
        frequency = base ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float, device="cpu") / rotary_dim)
        angle = torch.outer(torch.arange(max_position, dtype=torch.float, device="cpu"), frequency)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        self.register_buffer("cos_cache", cos[:, None, None, :], persistent=False)
        self.register_buffer("sin_cache", sin[:, None, None, :], persistent=False)
        self.register_buffer("cos_sin_cache", torch.cat([cos, sin], -1), persistent=False)

    def forward(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor | None = None,
        offsets: Tensor | None = None,
        is_nope_first: bool = False,
    ) -> tuple[Tensor, Tensor] | Tensor:
        if is_nope_first:
            raise MissingBodyError("aiter's RotaryEmbedding with is_nope_first has no body in the simulation")
        at = (positions if offsets is None else positions + offsets.view_as(positions)).flatten()
        cos, sin = self.cos_cache[at, 0].float(), self.sin_cache[at, 0].float()

        def turn(x: Tensor) -> Tensor:
            return rotate(x.reshape(at.numel(), -1, self.head_size), cos, sin, self.is_neox_style).reshape(x.shape)

        return turn(query) if key is None else (turn(query), turn(key))

    forward_hip = forward_cuda = forward_native = forward


@aiter.function("aiter.rotary_embedding.get_rope")
def get_rope(
    head_size: int,
    rotary_dim: int,
    max_position: int,
    base: int,
    is_neox_style: bool = True,
    rope_scaling: Mapping[str, object] | None = None,
    dtype: torch.dtype | None = None,
    partial_rotary_factor: float = 1.0,
    dual_chunk_attention_config: Mapping[str, object] | None = None,
) -> RotaryEmbedding:
    kind = (rope_scaling or {}).get("rope_type", "default")
    if kind != "default" or dual_chunk_attention_config is not None:
        raise MissingBodyError(f"aiter.rotary_embedding.get_rope with rope_type={kind!r} has no body in the simulation")
    rotary = int(rotary_dim * partial_rotary_factor)
    return _rope(head_size, rotary, max_position, base, is_neox_style, dtype or torch.get_default_dtype())


_rope = functools.cache(RotaryEmbedding)  # like the real one: equal arguments, same object

_NORM_ROPE = "aiter.ops.fused_qk_norm_rope_cache_quant.fused_qk_norm_rope_cache_pts_quant_shuffle"
_NORM_ROPE_PARAMETERS = (
    "qkv, qw, kw, cos_sin, positions, num_tokens, num_heads_q, num_heads_k, num_heads_v, head_size, is_neox_style, "
    "eps, q_out, k_cache, v_cache, slot_mapping, per_tensor_k_scale, per_tensor_v_scale, k_out, v_out, return_kv, "
    "use_shuffle_layout, block_size, x"
)
aiter.signature(_NORM_ROPE, _NORM_ROPE_PARAMETERS, shown_in=("aiter",), last="v0.1.10.post3")
aiter.signature(_NORM_ROPE, f"{_NORM_ROPE_PARAMETERS}, rotary_dim=0", shown_in=("aiter",), first="v0.1.12")
