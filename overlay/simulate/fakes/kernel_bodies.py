"""sgl_kernel's functions that a simulation runs: activations, rotary embedding, and the plumbing of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from overlay.simulate.fakes.aiter_rope import rotate
from overlay.simulate.fakes.catalogues import sgl_kernel
from overlay.simulate.fakes.errors import MissingBodyError

_PACKAGE = "sgl_kernel"


def _gated(x: Tensor, out: Tensor | None, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(first half) * second half of the last dimension, in fp32, rounded once."""
    gate, up = x.float().chunk(2, -1)
    result = (act(gate) * up).to(x.dtype)
    return result if out is None else out.copy_(result)


@sgl_kernel.function(f"{_PACKAGE}.silu_and_mul")
def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    return _gated(input, out, F.silu)


@sgl_kernel.function(f"{_PACKAGE}.gelu_and_mul")
def gelu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    return _gated(input, out, F.gelu)


@sgl_kernel.function(f"{_PACKAGE}.gelu_tanh_and_mul")
def gelu_tanh_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    return _gated(input, out, lambda gate: F.gelu(gate, approximate="tanh"))


@sgl_kernel.function(f"{_PACKAGE}.rotary_embedding")
def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool = True,
) -> None:
    """Rotate `query` and `key` [tokens, heads * head size] in place; `cos_sin_cache` [positions, rotary]."""
    cos, sin = cos_sin_cache[positions.flatten()].float()[:, None].chunk(2, -1)
    for x in (query, key):
        if x is not None:
            heads = x.view(positions.numel(), -1, head_size)
            heads.copy_(rotate(heads, cos, sin, is_neox))


@sgl_kernel.function(f"{_PACKAGE}.topk_softmax")
def topk_softmax(
    topk_weights: Tensor,
    topk_ids: Tensor,
    gating_output: Tensor,
    renormalize: bool = False,
    moe_softcapping: float = 0.0,
    correction_bias: Tensor | None = None,
) -> None:
    if moe_softcapping != 0.0 or correction_bias is not None:
        raise MissingBodyError("sgl_kernel.topk_softmax with softcapping or a bias has no body in the simulation")
    weights, ids = torch.topk(torch.softmax(gating_output.float(), -1), topk_ids.shape[-1], -1)
    topk_weights.copy_(weights / weights.sum(-1, keepdim=True) if renormalize else weights)
    topk_ids.copy_(ids)


_ALIGN = (
    "topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad, cumsum_buffer, "
    "pad_sorted_token_ids=False"
)


@sgl_kernel.function(f"{_PACKAGE}.moe_align_block_size", _ALIGN, last="0.4.2.post2")
@sgl_kernel.function(f"{_PACKAGE}.moe_align_block_size", f"{_ALIGN}, ignore_invalid_expert=False", first="0.4.10")
def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    experts_ids: Tensor,
    num_tokens_post_pad: Tensor,
    ignore_invalid_expert: bool = False,
    **_: object,
) -> None:
    """Sort token slots by expert, each expert's share padded to whole blocks; name the expert of each block.

    `num_experts` counts one more than there are: slot 0 is for the id -1 of tokens whose expert is elsewhere
    (moe_align_block_size.py in sglang passes `num_experts + 1`).
    """
    chosen = topk_ids.flatten()
    sorted_token_ids.fill_(chosen.numel())
    block = 0
    for expert in range(0 if ignore_invalid_expert else -1, num_experts - 1):
        slots = torch.nonzero(chosen == expert).flatten()
        sorted_token_ids[block * block_size : block * block_size + slots.numel()] = slots.to(sorted_token_ids.dtype)
        blocks = -(-slots.numel() // block_size)
        experts_ids[block : block + blocks] = expert
        block += blocks
    num_tokens_post_pad.fill_(block * block_size)
