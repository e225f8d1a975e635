"""The definition of DeepSeek-V4's sparse attention in PyTorch, and pages as sglang writes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patches.kernels.sparse_mla import BYTES_PER_KEY, HEAD_DIM, Scope

NOPE = 448


def make_keys(count: int, generator: torch.Generator, fp8: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Keys (count, 512) in float64 that a page holds exactly: `fp8` times a power of two, then bfloat16."""
    nope = torch.randn(count, 7, 64, generator=generator).to(fp8).double()
    nope *= torch.exp2(torch.randint(-3, 3, (count, 7, 1), generator=generator).double())
    rope = torch.randn(count, 64, generator=generator).bfloat16().double()
    return torch.cat([nope.flatten(1), rope], 1)


def pack(keys: Tensor, page: int, fp8: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """The pages (pages, page, 1, 584) of a whole number of pages of keys, as a view of rows that end in padding."""
    tiles = keys[:, :NOPE].view(-1, 7, 64)
    # Scaled up to at most 240, the largest e4m3fnuz (e4m3fn goes to 448), no element loses a bit.
    exponents = torch.floor(torch.log2(tiles.abs().amax(-1))).long() - 7
    nope = (tiles / torch.exp2(exponents.double())[..., None]).to(fp8)
    rope = keys[:, NOPE:].bfloat16().view(torch.uint8).view(-1, 128)
    data = torch.cat([nope.view(torch.uint8).flatten(1), rope], 1)
    scales = torch.full((len(keys), 8), 0xFF, dtype=torch.uint8)  # a padding that would be NaN
    scales[:, :7] = (exponents + 127).to(torch.uint8)
    used = page * BYTES_PER_KEY
    rows = torch.full((len(keys) // page, -(-used // 576) * 576), 0x7F, dtype=torch.uint8)
    rows[:, : page * 576] = data.view(len(rows), -1)
    rows[:, page * 576 : used] = scales.view(len(rows), -1)
    return rows[:, :used].view(len(rows), page, 1, BYTES_PER_KEY)


class Attention(NamedTuple):
    """What `attend` returns: the output, the sum of the magnitudes it is made of, the logarithm, and by how much a
    score formed in float32 may be off (T, H): that changes a weight by the same share of itself."""

    out: Tensor
    magnitude: Tensor
    lse: Tensor
    score_error: Tensor


def attend(
    q: Tensor, keys: list[Tensor], scopes: tuple[Scope, ...], scale: float, sink: Tensor | None, per_request: int
) -> Attention:
    """In float64, from `keys` before they were packed."""
    found, valid = [], []
    for all_keys, scope in zip(keys, scopes, strict=True):
        found.append(all_keys[scope.indices.long().clamp_min(0)])
        is_key = scope.indices >= 0
        if scope.lengths is not None:
            lengths = scope.lengths.repeat_interleave(per_request)[:, None]
            is_key &= torch.arange(scope.indices.shape[1]) < lengths
        valid.append(is_key)
    values, is_valid = torch.cat(found, 1), torch.cat(valid, 1)
    scores = torch.einsum("thd,tkd->thk", q.double(), values) * scale
    scores = scores.masked_fill(~is_valid[:, None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    whole = lse if sink is None else torch.logaddexp(lse, sink.double().expand_as(lse))
    weights = torch.exp(scores - whole[..., None]).nan_to_num(0.0)
    weights = torch.where(is_valid.any(1)[:, None, None], weights, 0.0)
    lse = torch.where(is_valid.any(1)[:, None], lse, float("inf"))
    out = torch.einsum("thk,tkd->thd", weights, values)
    assert out.shape[-1] == HEAD_DIM
    terms = torch.einsum("thd,tkd->thk", q.double().abs(), values.abs()) * scale
    error = 2**-21 * terms.masked_fill(~is_valid[:, None], 0.0).amax(-1)
    return Attention(out, torch.einsum("thk,tkd->thd", weights, values.abs()), lse, error)
