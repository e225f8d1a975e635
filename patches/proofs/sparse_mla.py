"""DeepSeek-V4's sparse decode in one pass against its definition, and against gathering the keys first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overlay.verify.case import Case, Draw, Expected, Tensors, within
from overlay.verify.shapes import Model, Shapes
from patches.kernels.sparse_mla import BYTES_PER_KEY, HEAD_DIM, Scope, sparse_decode, supports

_SCALE = HEAD_DIM**-0.5
#: Elements of a key in FP8; the rest are rotary ones in bfloat16.
_NOPE = 448
_TILE = 64
#: Tokens a page of the sliding window, and of the keys that are compressed from four tokens.
_PAGES = (128, 64)
#: What rounding the weights of the softmax moves, as a part of the values' mean magnitude.
_WEIGHTS = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


class Inputs(NamedTuple):
    """The tensors of one call: queries (T, H, 512), two scopes of keys as `Scope` describes them, the sink (H,)."""

    q: Tensor
    pages: Tensor
    indices: Tensor
    lengths: Tensor
    more_pages: Tensor
    more_indices: Tensor
    more_lengths: Tensor
    sink: Tensor

    @property
    def scopes(self) -> tuple[Scope, Scope]:
        more = Scope(self.more_pages, self.more_indices, self.more_lengths)
        return Scope(self.pages, self.indices, self.lengths), more


class Attention(NamedTuple):
    """The output (T, H, 512), the sum of the magnitudes it is made of, the logarithm of the softmax's denominator
    (T, H), and what a score formed in float32 may be off (T, H): that changes a weight by the same share of itself."""

    out: Tensor
    magnitude: Tensor
    lse: Tensor
    score_error: Tensor


def decode(pages: Tensor, indices: Tensor) -> Tensor:
    """The keys (..., 512) at `indices` of pages (pages, tokens a page, 1, 584), in float32, in which they are exact."""
    count, tokens = pages.shape[:2]
    rows = pages.view(torch.uint8).flatten(1)
    data = rows[:, : tokens * 576].reshape(count * tokens, 576)[indices]
    tiles = rows[:, tokens * 576 :].reshape(count * tokens, 8)[indices][..., : _NOPE // _TILE]
    scales = torch.exp2(tiles.float() - 127).repeat_interleave(_TILE, -1)
    nope = data[..., :_NOPE].contiguous().view(torch.float8_e4m3fn).float()
    rope = data[..., _NOPE:].contiguous().view(torch.bfloat16).float()
    return torch.cat([nope * scales, rope], -1)


def native(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What the build does with a large batch: write all keys of every token in the dtype of q, then attend them."""
    q = inputs.q
    keys, valid = _gathered(inputs, q.dtype)
    scores = torch.einsum("thd,tkd->thk", q, keys).float() * _SCALE
    scores = scores.masked_fill(~valid[:, None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.logaddexp(lse, inputs.sink.expand_as(lse))[..., None])
    return torch.einsum("thk,tkd->thd", weights.to(q.dtype), keys), lse


def reference(inputs: Inputs) -> Attention:
    """The definition, in float64. Every token has a key."""
    q = inputs.q.double()
    keys, valid = _gathered(inputs, torch.float64)
    scores = torch.einsum("thd,tkd->thk", q, keys) * _SCALE
    scores = scores.masked_fill(~valid[:, None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.logaddexp(lse, inputs.sink.double().expand_as(lse))[..., None])
    terms = torch.einsum("thd,tkd->thk", q.abs(), keys.abs()) * _SCALE
    error = 2**-21 * terms.masked_fill(~valid[:, None], 0.0).amax(-1)
    out = torch.einsum("thk,tkd->thd", weights, keys)
    return Attention(out, torch.einsum("thk,tkd->thd", weights, keys.abs()), lse, error)


def cases(shapes: Shapes) -> Iterator[Case]:
    """Batches beyond the bound from which the patch takes its kernel, and small ones of every model."""
    for model in shapes.models:
        if model.sparse_attention is not None:
            for tokens in (shapes.tokens[0], *shapes.large):
                yield _case(model, tokens)


def _case(model: Model, tokens: int) -> Case:
    assert model.sparse_attention is not None
    dtype, heads = getattr(torch, model.dtype), model.query_heads
    counts = model.sparse_attention.window, model.sparse_attention.chosen

    def inputs(draw: Draw) -> Inputs:
        scopes: list[Tensor] = []
        for page, count in zip(_PAGES, counts, strict=True):
            pages = _random_pages(draw, -(-4 * count // page), page)
            indices = draw.integers(0, pages.shape[0] * page, tokens, count, dtype=torch.int32)
            indices[draw.uniform(tokens, count) < 0.1] = -1
            indices[:, 0] = 0  # every token has a key: at least its own
            scopes += [pages, indices, draw.integers(1, count + 1, tokens, dtype=torch.int32)]
        return Inputs._make([draw.normal(tokens, heads, HEAD_DIM, dtype=dtype), *scopes, draw.normal(heads)])

    def expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        want = reference(Inputs(*(t for t in given if t is not None)))
        error = _WEIGHTS[dtype] + want.score_error[..., None]
        return [
            within("the output", want.out, error * (want.out.abs() + want.magnitude) + 1e-6),
            within("the logarithm", want.lse, want.score_error + 1e-6 * want.lse.abs() + 1e-6),
        ]

    return Case(
        label=f"{tokens} x {heads} heads, {counts[0]} + {counts[1]} keys {model.dtype}",
        kernel="triton",
        inputs=inputs,
        takes=lambda *tensors: supports(tensors[0], Inputs(*tensors).scopes),
        fused=lambda *tensors: sparse_decode(tensors[0], Inputs(*tensors).scopes, _SCALE, tensors[-1]),
        replaced=lambda *tensors: native(Inputs(*tensors)),
        expected=expected,
    )


def _random_pages(draw: Draw, count: int, page: int) -> Tensor:
    """Pages as sglang writes them: e4m3 with a power of two a tile, then bfloat16, then the exponents and a padding."""
    tokens = count * page
    data = torch.empty(tokens, 576, dtype=torch.uint8, device=draw.device)
    data[:, :_NOPE] = draw.normal(tokens, _NOPE).to(torch.float8_e4m3fn).view(torch.uint8)
    data[:, _NOPE:] = draw.normal(tokens, _TILE).bfloat16().view(torch.uint8)
    exponents = draw.integers(124, 130, tokens, 8, dtype=torch.uint8)
    exponents[:, -1] = 0xFF  # a padding that would be NaN
    rows = torch.cat([data.view(count, -1), exponents.view(count, -1)], 1)
    return rows.view(count, page, 1, BYTES_PER_KEY)


def _gathered(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The keys of every token (T, keys, 512), and which of them count."""
    keys, valid = [], []
    for scope in inputs.scopes:
        assert scope.lengths is not None
        keys.append(decode(scope.pages, scope.indices.clamp_min(0).long()).to(dtype))
        at = torch.arange(scope.indices.shape[1], device=scope.indices.device)
        valid.append((scope.indices >= 0) & (at < scope.lengths[:, None]))
    return torch.cat(keys, 1), torch.cat(valid, 1)
