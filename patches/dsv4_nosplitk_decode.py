"""DeepSeek-V4 on ROCm, builds of 2026-05-26 and 05-27: sparse attention of many tokens in one pass.

What is missing. #26208 brought Triton kernels for the sparse decode, used with SGLANG_HACK_FLASHMLA_BACKEND=triton. A
batch with two scopes of keys takes a split-k kernel, or, where that is slow, writes all its keys to memory in bfloat16
and reads them again. #26383 sends 256 tokens and more (1,024 where a token has few heads or keys) through one pass over
the FP8 pages without splits: 10 to 14 % faster on MI355X, and without the buffer, of gigabytes in a prefill. It also
moves the bound between the two old ways.

How we know it is right. `patches.kernels.sparse_mla` computes the same attention and is tested against float64. The
bounds are #26383's, which were measured on MI355X; elsewhere nothing changes. What the kernel does not take, and
everything once it has failed, is the release's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from overlay import guard as guards
from overlay import shadow
from overlay.bound import Bound, absolute, row_eps
from overlay.counters import CALLS, FALLBACKS
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import dsv4_window as window

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "sglang.srt.layers.attention.nsa.triton_decode.triton_mla_kernels_decode_optimized"
_DECODE = Slot(_MODULE, "_triton_sparse_attn_decode_dsv4")
_FUSED = Slot(_MODULE, "_should_use_fused_dual_scope")
_ENTRY = Slot(_MODULE, "triton_sparse_attn_decode")
_SWITCH = "SGLANG_HACK_FLASHMLA_BACKEND"
_ID = "dsv4-nosplitk-decode"

#: Of the output and the logarithm, against the release's kernels. Both round the weight of every key to 16 bits, whose
#: errors cancel as the terms do, and the result once: in all some two units of a head's largest value. A key that is
#: read twice, or with the scale of another, moves the result by more than four.
BOUNDS = (Bound("out", 4, row_eps), Bound("lse", 1e-3, absolute))


def in_one_pass(tokens: int, heads: int, keys: int) -> bool:
    """Whether a batch is large enough to fill the GPU without splits (`_should_use_fused_nosplitk` of #26383)."""
    return tokens >= 1024 or (tokens >= 256 and heads > 64 and keys >= 200)


def make_decode(original: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """The sparse attention of q (requests, tokens, heads, 512) over one or two scopes of keys.

    Returns the output in the shape of q, and the logarithm of the softmax's denominator fp32 (requests, heads, tokens).
    """
    from patches.kernels.sparse_mla import HEAD_DIM, Scope, sparse_decode, supports

    guard = guards.guard(_ID)

    def scope_of(given: Any, rows: int) -> Scope:
        indices = given.indices_in_kvcache
        return Scope(given.blocked_k_quantized, indices.reshape(rows, indices.shape[-1]), given.topk_length)

    def decode(
        q: Tensor, kv_scope: Any, extra_kv_scope: Any, sm_scale: float, d_v: int, attn_sink: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if guard.on and extra_kv_scope is not None and d_v == HEAD_DIM:
            requests, tokens, heads, width = q.shape
            rows = requests * tokens
            scopes = scope_of(kv_scope, rows), scope_of(extra_kv_scope, rows)
            keys = sum(scope.indices.shape[1] for scope in scopes)
            flat = q.reshape(rows, heads, width)
            if in_one_pass(rows, heads, keys):
                if not supports(flat, scopes):
                    guard.counts[FALLBACKS] += 1
                elif guard.shadow_runs and shadow.due(guard):

                    def kernel() -> tuple[Tensor, Tensor]:
                        out, lse = sparse_decode(flat, scopes, sm_scale, attn_sink, tokens)
                        return out.view(q.shape), lse.view(requests, tokens, heads).transpose(1, 2)

                    upstream: Callable[[], tuple[Tensor, Tensor]] = partial(
                        original, q, kv_scope, extra_kv_scope, sm_scale, d_v, attn_sink
                    )
                    return shadow.run(guard, kernel, upstream, BOUNDS, (q, *scopes[0], *scopes[1]))
                else:
                    try:
                        out, lse = sparse_decode(flat, scopes, sm_scale, attn_sink, tokens)
                    except Exception as error:  # noqa: BLE001 - it may fail in any way, and the release computes it too
                        guard.trip(error)
                    else:
                        guard.counts[CALLS] += 1
                        return out.view(q.shape), lse.view(requests, tokens, heads).transpose(1, 2)
        return original(q, kv_scope, extra_kv_scope, sm_scale, d_v, attn_sink)  # type: ignore[no-any-return]

    return decode


def make_should_fuse(_original: object) -> Callable[[int, int, int], bool]:
    """Whether smaller batches take the split-k kernel rather than gather their keys first, by #26383's bounds."""

    def should_use_fused_dual_scope(total_tokens: int, h_q: int, total_topk: int) -> bool:
        if total_tokens <= 4:
            return True
        if h_q > 64:
            return total_tokens <= (32 if total_topk >= 400 else 128)
        if total_topk <= 800:
            return total_tokens <= 256
        return total_topk < 1024 or total_tokens <= 128

    return should_use_fused_dual_scope


def _where_triton_decodes(facts: Facts) -> Need:
    if facts.environ.get(_SWITCH) != "triton":
        return Need(False, f"this build runs its Triton decode only with {_SWITCH}=triton")
    return Need(True, "back-port of #26383: this build splits or gathers the keys of every batch with two scopes")


_before_triton = always(Need(False, "this build has TileLang's sparse decode only; Triton's came with #26208"))


PATCH = Patch(
    id=_ID,
    title="DeepSeek-V4's sparse attention of many tokens in one pass",
    why="Builds of 2026-05-26 and 05-27 split the keys of a large batch, or copy them to memory in bfloat16 first. "
    "From 256 tokens on, one pass over the FP8 pages needs no buffer, and was 10 to 14 % faster where #26383 measured "
    "its own kernel (MI355X). Taken with SGLANG_HACK_FLASHMLA_BACKEND=triton on gfx950.",
    upstream=(window.UPSTREAM,),
    contained_since="0.5.13",
    versions=window.VERSIONS,
    kernels="patches.proofs.sparse_mla:cases",
    archs=frozenset({"gfx950"}),
    variants=(
        Variant(
            name="split-k",
            images=(
                window.HIP_RADIX,
                Image.of(_DECODE, "f1c399500cd3e9cc"),
                Image.of(_FUSED, "da7e8347a4af8f6e"),
                Image.of(_ENTRY, "bc40a4145447fca0"),
            ),
            need=_where_triton_decodes,
            targets=(
                Target(_DECODE, Method.REPLACE, make_decode),
                Target(_FUSED, Method.REPLACE, make_should_fuse),
            ),
        ),
        Variant(
            name="no-triton-decode",
            images=(
                window.HIP_RADIX,
                Image.of(Slot(window.MODEL, "MQALayer._forward_prepare_multi_stream_hip"), ABSENT),
            ),
            need=_before_triton,
        ),
        window.contained(
            "decodes large batches without splits",
            Image.of(Slot(_MODULE, "_should_use_fused_nosplitk"), "b8e6cfa144d20f53"),
        ),
        window.NO_BACKEND,
    ),
    verified_by="the kernel in the Triton interpreter and on an H200 against float64, and under the real dispatch of "
    "two builds; offline compilation for gfx942 and gfx950; not timed on an AMD GPU",
    remove_when=window.REMOVE_WHEN,
)
