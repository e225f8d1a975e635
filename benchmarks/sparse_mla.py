"""DeepSeek-V4's sparse decode over FP8 pages, two scopes: one pass, against splitting the keys or gathering them.

A token attends the 128 keys of its window and 512 that an indexer chose from 2048 compressed ones; no two tokens share
a key, as in a decode batch. The forms of AMD's development builds of May 2026 (#26208, #26383) are run as they are,
with their autotuning: "gather" writes every key in bfloat16 and reads it again, "split-k" combines partial results.
SGLang 0.5.23 has what became of #26383's one pass. The errors of the output and of the softmax's logarithm are from
float64, for up to 32 of the tokens. "replay differs" counts elements of a graph's replay on new inputs that are not
those of a plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import GPU, AbsentError, Case, Group, Maker, Place, Prepared
from benchmarks.peers import load
from benchmarks.peers.autotuning import compiled_at_once
from benchmarks.peers.compiled import compiled
from benchmarks.timing import side_stream
from overlay.bound import mismatches
from patches.kernels.sparse_mla import BYTES_PER_KEY, HEAD_DIM, Scope, sparse_decode

_SUITE = "sparse_mla"
_HEADS, _TOKENS = (64, 128), (64, 128, 256, 512, 1024, 4096)
_SCALE = HEAD_DIM**-0.5
_NOPE, _TILE, _KEY_BYTES = 448, 64, 576
#: Tokens a page, keys that a token attends, and those of one request: the window, and one key in four tokens of 8192.
_WINDOW, _CHOSEN = (128, 128, 128), (64, 512, 2048)
_CHECKED = 32
_MOST_UNFUSED = 2048
_MOST_COMPILED = 256


class Inputs(NamedTuple):
    """Queries (T, heads, 512), the two scopes, and the sink (heads,)."""

    q: Tensor
    window: Scope
    chosen: Scope
    sink: Tensor


Output = tuple[Tensor, Tensor]
Decode = Callable[[Inputs], Output]


def groups(quick: bool) -> list[Group]:
    heads, tokens = ((128,), (64, 256)) if quick else (_HEADS, _TOKENS)
    cases = tuple(case(h, count) for h in heads for count in tokens)
    title = "Sparse decode, 128 + 512 keys a token (H = heads, T = tokens)"
    return [Group(_SUITE, title, "H, T", cases)]


def case(heads: int, tokens: int, place: Place = GPU) -> Case:
    keys = _WINDOW[1] + _CHOSEN[1]
    queries = tokens * heads * (2 * HEAD_DIM * place.dtype.itemsize + torch.float32.itemsize)
    return Case(
        label=f"{heads}, {tokens}",
        parameters={"heads": heads, "tokens": tokens, "keys": keys, "dtype": place.dtype_name},
        bytes_moved=queries + tokens * (keys * (BYTES_PER_KEY + torch.int32.itemsize) + 2 * torch.int32.itemsize),
        operations=4 * tokens * heads * keys * HEAD_DIM,
        makers=partial(_makers, heads, tokens, place),
    )


def _makers(heads: int, tokens: int, place: Place) -> dict[str, Maker]:
    inputs = fresh(heads, tokens, place)

    def prepare(make: Callable[[], Decode]) -> Prepared:
        decode = make()
        errors = _errors(inputs, decode(inputs))
        return Prepared(partial(decode, inputs), {**errors, **(_replay_errors(inputs) if decode is _ours else {})})

    makers: dict[str, Callable[[], Decode]] = {
        "ours": lambda: _ours,
        "unfused": partial(_unfused, tokens),
        "torch.compile": partial(_compiled, tokens),
        "gather, dev build": _gather,
        "split-k, dev build": partial(_split_k, heads, tokens),
        "SGLang 0.5.23": _sglang,
    }
    return {name: partial(prepare, make) for name, make in makers.items()}


def fresh(heads: int, tokens: int, place: Place) -> Inputs:
    """A decode batch: every token is a request of its own and has all its keys."""
    window, chosen = (_fresh_scope(tokens, *sizes, place.device) for sizes in (_WINDOW, _CHOSEN))
    q = place.normal(tokens, heads, HEAD_DIM)
    return Inputs(q, window, chosen, torch.randn(heads, device=place.device))


def _fresh_scope(tokens: int, page: int, keys: int, held: int, device: str) -> Scope:
    """Pages that end in padding up to a multiple of 576 bytes, as in the pool."""
    count = tokens * held // page
    padded = -(-page * BYTES_PER_KEY // _KEY_BYTES) * _KEY_BYTES
    rows = torch.zeros(count, padded, dtype=torch.uint8, device=device)
    data = rows[:, : page * _KEY_BYTES].view(count, page, _KEY_BYTES)
    # e4m3 of 1/8 to 15/8 of either sign; 64 bfloat16 of 1/4 to 2; powers of two from 1/4 to 2.
    signed = torch.randint(0, 2, (count, page, _NOPE), dtype=torch.uint8, device=device) << 7
    data[..., :_NOPE] = torch.randint(0x20, 0x40, (count, page, _NOPE), dtype=torch.uint8, device=device) | signed
    rope = torch.empty(count, page, _TILE, dtype=torch.bfloat16, device=device).uniform_(-1, 1)
    data[..., _NOPE:] = rope.view(torch.uint8)
    rows[:, page * _KEY_BYTES : page * BYTES_PER_KEY].random_(125, 129)
    pages = rows[:, : page * BYTES_PER_KEY].view(count, page, 1, BYTES_PER_KEY)
    own = torch.rand(tokens, held, device=device).argsort(1)[:, :keys]
    indices = (own + torch.arange(tokens, device=device)[:, None] * held).int()
    return Scope(pages, indices, torch.full((tokens,), keys, dtype=torch.int32, device=device))


def keys_of(scope: Scope, dtype: torch.dtype) -> Tensor:
    """The keys (tokens, keys, 512) that the rows of a scope name, read from its pages. All of them must exist."""
    page = scope.pages.shape[1]
    rows = scope.pages.as_strided((len(scope.pages), page * BYTES_PER_KEY), (scope.pages.stride(0), 1))
    where, at = scope.indices.long() // page, scope.indices.long() % page
    data = rows[:, : page * _KEY_BYTES].view(-1, page, _KEY_BYTES)[where, at]
    exponents = rows[:, page * _KEY_BYTES :].view(-1, page, 8)[where, at, : _NOPE // _TILE]
    scales = torch.exp2(exponents.to(dtype) - 127)
    nope = data[..., :_NOPE].contiguous().view(torch.float8_e4m3fn).to(dtype).view(*where.shape, -1, _TILE)
    rope = data[..., _NOPE:].contiguous().view(torch.bfloat16).to(dtype)
    return torch.cat([(nope * scales[..., None]).flatten(-2), rope], -1)


def _attend(inputs: Inputs, dtype: torch.dtype) -> Output:
    """Keys are gathered first; scores and the softmax are formed in float32, or in `dtype` if that is wider."""
    wide = torch.promote_types(dtype, torch.float32)
    keys = torch.cat([keys_of(scope, dtype) for scope in (inputs.window, inputs.chosen)], 1)
    scores = torch.einsum("thd,tkd->thk", inputs.q.to(dtype), keys).to(wide) * _SCALE
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.logaddexp(lse, inputs.sink.to(wide).expand_as(lse))[..., None])
    return torch.einsum("thk,tkd->thd", weights.to(dtype), keys), lse


def _errors(inputs: Inputs, made: Output) -> dict[str, float]:
    tokens, heads, _ = inputs.q.shape
    some = torch.linspace(0, tokens - 1, min(tokens, _CHECKED), device=inputs.q.device).round().long()
    window, chosen = (scope._replace(indices=scope.indices[some]) for scope in (inputs.window, inputs.chosen))
    out, lse = _attend(Inputs(inputs.q[some], window, chosen, inputs.sink), torch.float64)
    got, got_lse = made[0].reshape(tokens, heads, HEAD_DIM)[some], made[1].reshape(tokens, heads)[some]
    return {
        "output, relative": float((got.double() - out).abs().max() / out.abs().max()),
        "logarithm": float((got_lse.double() - lse).abs().max()),
    }


def _replay_errors(given: Inputs) -> dict[str, float]:
    """Captures our decode, changes every input in place, replays, and compares with a plain call. Nothing on a CPU."""
    if not given.q.is_cuda:
        return {}
    inputs = copied(given)
    torch.cuda.synchronize()
    with torch.cuda.stream(side_stream()):
        _ours(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = _ours(inputs)
        change(inputs)
        graph.replay()
        plain = _ours(inputs)
        torch.cuda.synchronize()
    return {"replay differs": sum(map(mismatches, replayed, plain))}


def copied(given: Inputs) -> Inputs:
    window, chosen = (Scope(*(t.clone() for t in scope if t is not None)) for scope in (given.window, given.chosen))
    return Inputs(given.q.clone(), window, chosen, given.sink.clone())


def change(inputs: Inputs) -> None:
    """Makes every tensor another of the same kind, in place: each alone changes the result, which stays finite."""
    inputs.q.neg_().mul_(0.5)
    inputs.sink.add_(1)
    for scope in (inputs.window, inputs.chosen):
        scope.indices.copy_(scope.indices.roll(1, 0))
        assert scope.lengths is not None
        scope.lengths.sub_(1)
        count, page = scope.pages.shape[:2]
        tokens = scope.pages.as_strided((count, page, _NOPE), (scope.pages.stride(0), _KEY_BYTES, 1))
        tokens.bitwise_xor_(0x80)


def _ours(inputs: Inputs) -> Output:
    return sparse_decode(inputs.q, (inputs.window, inputs.chosen), _SCALE, inputs.sink)


def _gathering(inputs: Inputs) -> Output:
    return _attend(inputs, inputs.q.dtype)


def _unfused(tokens: int) -> Decode:
    if tokens > _MOST_UNFUSED:
        raise AbsentError("its gathered keys, and what they are made from, take more than 6 GiB")
    return _gathering


def _compiled(tokens: int) -> Decode:
    if tokens > _MOST_COMPILED:
        raise AbsentError(f"compiled for up to {_MOST_COMPILED} tokens only: each size takes it long")
    return compiled(_gathering)


def _dev_build(module: str) -> Any:
    return load.module("sglang_dev", f"sglang_dev.triton_decode.triton_mla_kernels_decode_{module}")


class _KvScope(NamedTuple):
    """The names by which the build's functions read a scope."""

    blocked_k: Tensor
    blocked_k_quantized: Tensor
    indices_in_kvcache: Tensor
    topk_length: Tensor | None

    @classmethod
    def of(cls, scope: Scope) -> _KvScope:
        return cls(scope.pages, scope.pages, scope.indices[:, None], scope.lengths)


def _gather() -> Decode:
    optimized, gathering = _dev_build("optimized"), _dev_build("dsv4")

    def decode(inputs: Inputs) -> Output:
        tokens, heads, _ = inputs.q.shape
        window, chosen = inputs.window, inputs.chosen
        out, lse = optimized._fallback_gather_attention(
            inputs.q[:, None], _KvScope.of(window), _KvScope.of(chosen), _SCALE, HEAD_DIM, inputs.sink,
            tokens, heads, HEAD_DIM, window.indices.shape[1], chosen.indices.shape[1], window.pages.shape[1],
            window.pages, gathering.fused_gather_dequant_fp8_dsv4,
        )  # fmt: skip
        return out, lse

    return compiled_at_once(decode)


def _split_k(heads: int, tokens: int) -> Decode:
    if heads <= 64 and tokens > 8:
        raise AbsentError("the build's rule takes no splits for 64 heads with so few keys")
    op = _dev_build("fused").fused_gather_attn_decode_dsv4_dual_scope_low_overhead

    def decode(inputs: Inputs) -> Output:
        window, chosen = inputs.window, inputs.chosen
        out, lse = op(
            inputs.q, window.pages, window.indices, window.pages.shape[1],
            chosen.pages, chosen.indices, chosen.pages.shape[1], _SCALE,
            topk_length_main=window.lengths, topk_length_extra=chosen.lengths, attn_sink=inputs.sink,
        )  # fmt: skip
        return out, lse

    return compiled_at_once(decode)


def _sglang() -> Decode:
    """As the release dispatches: in one pass, or split where its rule says so."""
    name = "sglang.kernels.ops.attention.dsv4.triton_sparse_decode.triton_mla_kernels_decode_optimized"
    attention = load.module("sglang", name).triton_sparse_attn_decode

    def decode(inputs: Inputs) -> Output:
        scopes = _KvScope.of(inputs.window), _KvScope.of(inputs.chosen)
        out, lse = attention(inputs.q[:, None], *scopes, _SCALE, HEAD_DIM, inputs.sink)
        return out, lse

    return compiled_at_once(decode)
