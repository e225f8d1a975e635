"""Qwen3-VL decode with aiter: the fused prologue only where aiter's op computes what the stepwise path computes.

What is wrong upstream. Since #21458 (0.5.10) `Qwen3Attention.forward` hands every decode step of a multimodal rotary
embedding to `fused_qk_norm_mrope_3d_cache_pts_quant_shuffle` and looks at nothing else (0.5.23 at the shape and the
dtype of the keys). The op writes plain slots and reads raw pointers, so a cache in blocks of vectors or in another
head order is filled in the wrong order, fp8 keys and values are written with the scale 1, a quantised pool loses what
is written to its dequantised copy, GLM's sections are rotated as Qwen's, the text positions of Qwen3-ASR end the
server, and, since aiter v0.1.16 checks no dtype, 32-bit positions, slots or norm weights are read as other numbers.
Since aiter b0cc5392dd it also takes the strides of a token and a head from the dimensions 1 and 2 of the cache:
upstream's three-dimensional one, through 0.5.22, is then written all over the place.

How we know it is right. The decision is made where upstream makes it, before anything is projected; what does not fit
takes the release's own stepwise path. What fits takes aiter's op, through 0.5.22 with the cache as blocks of one slot,
which every version of the op addresses alike.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay import guard as guards
from overlay import shadow
from overlay.counters import CALLS, FALLBACKS
from overlay.fingerprint import IMPORT
from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant
from patches import stepwise_prologue

if TYPE_CHECKING:
    from torch import Tensor

    PoolOf = Callable[[Any], Any]

_MODEL = "sglang.srt.models.qwen3"
_MROPE = "sglang.srt.layers.rotary_embedding.mrope"
_POOL = "sglang.srt.mem_cache.memory_pool"
_ID = "fix-fused-mrope-guards"

_FORWARD = Slot(_MODEL, "Qwen3Attention.forward")
_FUSED = Slot(_MODEL, "Qwen3Attention.forward_prepare_aiter_fused_mrope")
_USE_AITER = "SGLANG_USE_AITER"


class _OpFailedError(Exception):
    """From where the op is called to where its call was decided, through upstream's forward: take the steps."""


def _pool_of_batch(forward_batch: Any) -> Any:
    return forward_batch.token_to_kv_pool


def _pool_of_context(_forward_batch: Any) -> Any:
    return sys.modules[_MODEL].get_token_to_kv_pool()


def make_forward(pool_of: PoolOf) -> Callable[[Any], Callable[..., Tensor]]:
    """Makes `Qwen3Attention.forward`: upstream's, except that a decode step that does not fit is taken stepwise."""

    def make(original: Any) -> Callable[..., Tensor]:
        fits = _make_fits(pool_of)
        guard = guards.guard(_ID)

        def forward(self: Any, positions: Tensor, hidden_states: Tensor, forward_batch: Any) -> Tensor:
            if not self.use_fused_qk_norm_mrope or not forward_batch.forward_mode.is_decode():
                output: Tensor = original(self, positions, hidden_states, forward_batch)
                return output
            if guard.on:
                if fits(self, positions, hidden_states, forward_batch):
                    try:
                        output = original(self, positions, hidden_states, forward_batch)
                    except _OpFailedError:
                        pass  # before attention has seen anything
                    else:
                        guard.counts[CALLS] += 1
                        return output
                else:
                    guard.counts[FALLBACKS] += 1
            # The stepwise path, by upstream's own switch for it. Attention then writes the cache, as its backend does.
            self.use_fused_qk_norm_mrope = False
            try:
                output = original(self, positions, hidden_states, forward_batch)
            finally:
                self.use_fused_qk_norm_mrope = True
            return output

        return forward

    return make


def make_fused(pool_of: PoolOf) -> Callable[[object], Callable[..., tuple[Tensor, None, None]]]:
    """Makes `forward_prepare_aiter_fused_mrope`: upstream's call of the op, with the cache as blocks of one slot."""

    def make(_original: object) -> Callable[..., tuple[Tensor, None, None]]:
        model = sys.modules[_MODEL]
        guard = guards.guard(_ID)

        def forward_prepare_aiter_fused_mrope(
            self: Any, positions: Tensor, hidden_states: Tensor, forward_batch: Any
        ) -> tuple[Tensor, None, None]:
            qkv, _ = self.qkv_proj(hidden_states)
            tokens, rope = qkv.shape[0], self.rotary_emb
            k_cache, v_cache = pool_of(forward_batch).get_kv_buffer(self.attn.layer_id)
            q = qkv.new_empty(tokens, self.q_size)
            slots = forward_batch.out_cache_loc
            # By position, as upstream: the bindings of early versions of the op name no argument.
            arguments = (
                qkv.view(tokens, -1, self.head_dim), self.q_norm.weight, self.k_norm.weight,
                rope.cos_sin_cache.to(qkv.dtype), positions, tokens,
                self.num_heads, self.num_kv_heads, self.num_kv_heads, self.head_dim,
                rope.is_neox_style, rope.mrope_section, rope.mrope_interleaved, self.q_norm.variance_epsilon,
                q.view(tokens, -1, self.head_dim), k_cache.unsqueeze(1), v_cache.unsqueeze(1),
                slots, self._fused_k_scale, self._fused_v_scale,
                None, None, False, False, 0, 0,
            )  # fmt: skip
            theirs = None
            if guard.shadow_runs and shadow.due(guard):
                theirs = stepwise_prologue.stepwise(self, positions, hidden_states, qkv, slots)
            try:
                model.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle(*arguments)
            except Exception as error:  # noqa: BLE001 - aiter's op may fail in any way, and torch computes the same
                guard.trip(error)
            else:
                if theirs is not None:
                    ours = stepwise_prologue.cached(self, q, k_cache, v_cache, slots)
                    shadow.agree(guard, ours, theirs, stepwise_prologue.BOUNDS, arguments)
            if not guard.on:
                raise _OpFailedError
            return q, None, None

        return forward_prepare_aiter_fused_mrope

    return make


def _make_fits(pool_of: PoolOf) -> Callable[..., bool]:
    """The question whether aiter's op, for one call of one layer, computes what the stepwise path would."""
    import torch

    from patches.kernels.qk_norm_mrope import Geometry, supports_batch, supports_geometry

    ropes = importlib.import_module(_MROPE)
    pool_class = importlib.import_module(_POOL).MHATokenToKVPool
    # Exact types: the YaRN one only scales the table, any other subclass may rotate otherwise, as Ernie's does.
    rope_classes = (ropes.MRotaryEmbedding, ropes.YaRNScalingMRotaryEmbedding)

    def fits_rope(layer: Any) -> bool:
        rope = layer.rotary_emb
        return (
            type(rope) in rope_classes
            and not rope.mrope_interleaved_glm
            and len(rope.mrope_section) == 3
            and rope.rotary_dim == layer.head_dim
            and layer.q_norm.variance_epsilon == layer.k_norm.variance_epsilon  # the op takes one
            and supports_geometry(
                Geometry(
                    layer.num_heads,
                    layer.num_kv_heads,
                    layer.head_dim,
                    tuple(rope.mrope_section),
                    rope.mrope_interleaved,
                    rope.is_neox_style,
                    layer.q_norm.variance_epsilon,
                )
            )
        )

    def fits_weight(weight: Tensor, layer: Any, dtype: torch.dtype) -> bool:
        return weight.dtype == dtype and weight.shape == (layer.head_dim,) and weight.is_contiguous()

    def fits_cache(cache: Tensor, layer: Any, dtype: torch.dtype) -> bool:
        plain = cache.shape[1:] == (layer.num_kv_heads, layer.head_dim)
        return plain and cache.dtype == dtype and cache.is_contiguous()

    def fits(layer: Any, positions: Tensor, hidden_states: Tensor, forward_batch: Any) -> bool:
        dtype = hidden_states.dtype
        pool = pool_of(forward_batch)
        return (
            dtype in (torch.bfloat16, torch.float16)
            and supports_batch(hidden_states, positions, forward_batch.out_cache_loc)
            and fits_rope(layer)
            and fits_weight(layer.q_norm.weight, layer, dtype)
            and fits_weight(layer.k_norm.weight, layer, dtype)
            # A subclass, or since 0.5.16 a quantised pool, gives out a copy: what is written there is lost.
            and type(pool) is pool_class
            and pool.store_dtype == dtype
            and all(fits_cache(cache, layer, dtype) for cache in pool.get_kv_buffer(layer.attn.layer_id))
        )

    return fits


def _where_aiter_is_called(facts: Facts) -> Need:
    if not facts.is_on(_USE_AITER):
        return Need(False, f"{_USE_AITER} is off: this release then takes the stepwise path")
    return Need(True, "fix of #21458: this release calls aiter's fused prologue where it computes something else")


def _image(module: str, qualname: str, *digests: str) -> Image:
    return Image.of(Slot(module, qualname), *digests)


_NATIVE = _image(_MODEL, "Qwen3Attention.forward_prepare_native", "18bf98c474133af5")
_GET_KV_BUFFER = _image(_POOL, "MHATokenToKVPool.get_kv_buffer", "42325664a6b2d0a7")
_GET_POOL = _image(
    _MODEL, "get_token_to_kv_pool", f"{IMPORT}sglang.srt.model_executor.forward_context.get_token_to_kv_pool"
)

PATCH = Patch(
    id=_ID,
    title="aiter's fused prologue of Qwen3-VL decode only where it computes the same",
    why="Since 0.5.10 Qwen3-VL decodes with aiter through a fused op without most of the conditions under which that "
    "op is right: caches in blocks of vectors or in HND order, fp8 caches with scales, 32-bit positions and fp32 norm "
    "weights give wrong tokens without an error, every cache does with aiter newer than b0cc5392dd through 0.5.22, "
    "and Qwen3-ASR ends the server.",
    upstream=("#21458",),
    contained_since="no release yet",
    versions=">=0.5.10,<0.5.24",
    # Both fill Qwen3Attention.forward, in releases that exclude each other: where this one applies, the other is
    # contained.
    variants=(
        Variant(
            name="pool-of-batch",
            images=(
                Image.of(_FORWARD, "83b70fd5b2060ec8"),
                Image.of(_FUSED, "3a5f6d8a7e01b434"),
                _image(_MODEL, "Qwen3Attention.__init__", "9bbfd51c2ccd934e"),
                _NATIVE,
                _image(_MROPE, "MRotaryEmbedding.__init__", "6250b2c9faa16009"),
                _GET_KV_BUFFER,
            ),
            need=_where_aiter_is_called,
            targets=(
                Target(_FORWARD, Method.REPLACE, make_forward(_pool_of_batch)),
                Target(_FUSED, Method.REPLACE, make_fused(_pool_of_batch)),
            ),
        ),
        Variant(
            name="pool-of-context",
            images=(
                Image.of(_FORWARD, "83b70fd5b2060ec8", "16af35e174b4e8ec", "3ad2a34ef48aaddb", "7b5d4c2da54b7300"),
                Image.of(_FUSED, "3c80b58a849a158a"),
                _image(
                    _MODEL,
                    "Qwen3Attention.__init__",
                    *("68b93039a28457e6", "097e7936bf734c0e", "bb5b2dddae9dbaea", "5607a1e8f55235c0"),
                    "e84aade797947163",
                ),
                _NATIVE,
                _GET_POOL,
                _image(
                    _MROPE,
                    "MRotaryEmbedding.__init__",
                    *("6250b2c9faa16009", "49ead702ce2caec5", "445d2c072fa18709", "d3e28e3dbdb3cc88"),
                ),
                _GET_KV_BUFFER,
            ),
            need=_where_aiter_is_called,
            targets=(
                Target(_FORWARD, Method.REPLACE, make_forward(_pool_of_context)),
                Target(_FUSED, Method.REPLACE, make_fused(_pool_of_context)),
            ),
        ),
        Variant(
            name="blocks-of-one-slot",
            images=(
                Image.of(_FORWARD, "b6f54b18288592ac"),
                _image(_MODEL, "Qwen3Attention.forward_prepare_aiter_fused", "56bfb6c6f43ae071"),
                _image(_MODEL, "aiter_fused_qk_norm_rope_set_kv", "a4b12482afd2ad0d"),
                _image(_MODEL, "Qwen3Attention.__init__", "63d608a3b7d67351"),
                _NATIVE,
                _GET_POOL,
                _image(_MROPE, "MRotaryEmbedding.__init__", "d3e28e3dbdb3cc88"),
                _GET_KV_BUFFER,
            ),
            need=_where_aiter_is_called,
            targets=(Target(_FORWARD, Method.REPLACE, make_forward(_pool_of_context)),),
        ),
    ),
    verified_by="real class of four releases on an emulation of aiter's op before and after it took strides: every "
    "defect shown, every guard tried, results those of the stepwise path",
    remove_when="every supported release asks these conditions before it calls the op",
)
