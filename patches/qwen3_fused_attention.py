"""Qwen3-VL decode on ROCm: one kernel from the QKV projection to the KV cache.

What upstream lacks. Through 0.5.9 `Qwen3Attention.forward` splits the projection, runs two RMSNorms, a 3-D rotary
embedding and a cache write, some twenty launches a layer. #21458 (0.5.10) fused them with an op of aiter, without most
of the conditions under which that op is right.

How we know it is right. `patches.kernels.qk_norm_mrope` rounds where the stepwise path does: keys, queries and values
are those of the definition, bit by bit, except where the norm lies on a rounding tie. Every call that is not provably
of the shape below takes the release's own forward.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from overlay import guard as guards
from overlay import shadow
from overlay.counters import CALLS, FALLBACKS
from overlay.gates import Gate, OneOf
from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import stepwise_prologue

if TYPE_CHECKING:
    from torch import Tensor

    from patches.kernels.qk_norm_mrope import Geometry

_MODEL = "sglang.srt.models.qwen3"
_ROPE = "sglang.srt.layers.rotary_embedding"
_POOL = "sglang.srt.mem_cache.memory_pool"
_ID = "qwen3-fused-attention"

BACKEND = Gate(
    "AMD_SGLANG_QWEN3_ATTENTION_BACKEND",
    "fused attention prologue of Qwen3-VL: auto (triton), triton, aiter (only one whose signature and results are "
    "those we know), off (upstream's separate operations)",
    "auto",
    OneOf(("auto", "triton", "aiter", "off")),
)


class Prologue(NamedTuple):
    """A kernel and its rules: what it takes of a layer, of that layer's tensors, and of one batch."""

    run: Callable[..., Tensor]
    supports_geometry: Callable[[Geometry], bool]
    supports_tensors: Callable[..., bool]
    supports_batch: Callable[..., bool]


def make_forward(original: Any) -> Callable[..., Tensor]:
    """`Qwen3Attention.forward`: the fused prologue where every condition holds, else `original`."""
    import torch

    backend = BACKEND.read(os.environ)
    if backend == "off":
        return lambda self, positions, hidden_states, forward_batch: original(
            self, positions, hidden_states, forward_batch
        )
    prologue = _prologue(backend)
    guard = guards.guard(_ID)
    pool_class = importlib.import_module(_POOL).MHATokenToKVPool
    layers: WeakKeyDictionary[Any, Geometry | None] = WeakKeyDictionary()

    def forward(self: Any, positions: Tensor, hidden_states: Tensor, forward_batch: Any) -> Tensor:
        # torch.compile traces the original: its operations are worth fusing, and a launch is opaque to it.
        if torch.compiler.is_compiling() or not guard.on or not forward_batch.forward_mode.is_decode():
            return original(self, positions, hidden_states, forward_batch)  # type: ignore[no-any-return]
        if self not in layers:
            layers[self] = _geometry(self, prologue)
        geometry = layers[self]
        pool, slots = forward_batch.token_to_kv_pool, forward_batch.out_cache_loc
        if (
            geometry is None
            or type(pool) is not pool_class  # a subclass may hold its cache in another form, such as fp4
            or not prologue.supports_batch(hidden_states, positions, slots)
        ):
            guard.counts[FALLBACKS] += 1
            return original(self, positions, hidden_states, forward_batch)  # type: ignore[no-any-return]

        qkv, _ = self.qkv_proj(hidden_states)
        rope = self.rotary_emb
        rope._match_cos_sin_cache_dtype(qkv)  # once: it replaces the table, as in the stepwise path
        weights = self.q_norm.weight, self.k_norm.weight
        caches = pool.get_kv_buffer(self.attn.layer_id)
        if not prologue.supports_tensors(geometry, qkv, *weights, rope.cos_sin_cache, *caches):
            # Dtypes and layouts of a layer's own tensors do not change while it serves: never project twice again.
            layers[self] = None
            guard.counts[FALLBACKS] += 1
            return original(self, positions, hidden_states, forward_batch)  # type: ignore[no-any-return]
        arguments = geometry, qkv, *weights, rope.cos_sin_cache, positions, *caches, slots
        if guard.shadow_runs and shadow.due(guard):
            q, *_ = shadow.run(
                guard,
                partial(_prepared, self, prologue, arguments),
                partial(stepwise_prologue.stepwise, self, positions, hidden_states, qkv, slots),
                stepwise_prologue.BOUNDS,
                arguments,
            )
            q = q.flatten(1)
        else:
            try:
                q = prologue.run(*arguments)
            except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and upstream computes the same
                guard.trip(error)
            else:
                guard.counts[CALLS] += 1
        if not guard.on:
            return original(self, positions, hidden_states, forward_batch)
        output, _ = self.o_proj(self.attn(q, None, None, forward_batch, save_kv_cache=False))
        return output  # type: ignore[no-any-return]

    return forward


def _prepared(layer: Any, prologue: Prologue, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    *_, k_cache, v_cache, slots = arguments
    return stepwise_prologue.cached(layer, prologue.run(*arguments), k_cache, v_cache, slots)


def _geometry(layer: Any, prologue: Prologue) -> Geometry | None:
    """What the kernel needs to know of a layer; None if the layer computes anything else than the kernel."""
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.server_args import get_global_server_args

    from patches.kernels.qk_norm_mrope import Geometry

    ropes = importlib.import_module(_ROPE)
    # Exact types: a subclass may rotate otherwise. The YaRN one, which only scales the table, is new in 0.5.9.
    exact = (ropes.MRotaryEmbedding, getattr(ropes, "YaRNScalingMRotaryEmbedding", None))
    rope, q_norm, k_norm, attn = layer.rotary_emb, layer.q_norm, layer.k_norm, layer.attn
    if (
        type(rope) not in exact
        or getattr(rope, "mrope_interleaved_glm", False)
        or len(rope.mrope_section or ()) != 3
        or not rope.head_size == rope.rotary_dim == layer.head_dim
        or type(q_norm) is not RMSNorm
        or type(k_norm) is not RMSNorm
        or q_norm.variance_epsilon != k_norm.variance_epsilon
        or type(attn) is not RadixAttention
        or not attn.qk_head_dim == attn.v_head_dim == layer.head_dim
        # The norms then multiply in another order and precision (qwen3.py:96, 0.5.9).
        or get_global_server_args().rl_on_policy_target is not None
    ):
        return None
    geometry = Geometry(
        num_q_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        head_size=layer.head_dim,
        mrope_section=tuple(rope.mrope_section),
        interleaved=rope.mrope_interleaved,
        neox=rope.is_neox_style,
        eps=q_norm.variance_epsilon,
    )
    return geometry if prologue.supports_geometry(geometry) else None


def _prologue(backend: str) -> Prologue:
    """The kernel of a backend. Raises if `aiter` was asked for and is not provably the one we know."""
    from patches.kernels import qk_norm_mrope as own

    if backend == "aiter":
        from patches.kernels.qk_norm_mrope_aiter import AiterPrologue

        aiter = AiterPrologue()
        return Prologue(aiter, own.supports_geometry, aiter.supports_tensors, own.supports_batch)
    return Prologue(own.qk_norm_mrope, own.supports_geometry, own.supports_tensors, own.supports_batch)


_stepwise = always(
    Need(True, "back-port of #21458: this release runs Qwen3-VL's attention prologue as separate operations")
)


_fused = always(Need(False, "upstream has a fused prologue for Qwen3-VL decode (aiter's, with SGLANG_USE_AITER)"))


def _image(module: str, qualname: str, *digests: str) -> Image:
    return Image.of(Slot(module, qualname), *digests)


_FORWARD = Slot(_MODEL, "Qwen3Attention.forward")

PATCH = Patch(
    id=_ID,
    title="one kernel for QKV split, QK-norm, 3-D mRoPE and KV-cache write in Qwen3-VL decode",
    why="Through 0.5.9 every layer of Qwen3-VL runs the steps between the QKV projection and attention as some twenty "
    "launches a token on ROCm: at small batches that is most of the layer's time outside matrix products.",
    upstream=("#21458",),
    contained_since="0.5.10",
    versions=">=0.5.6.post2,<0.5.24",
    kernels="patches.proofs.qk_norm_mrope:cases",
    gates=(BACKEND,),
    variants=(
        Variant(
            name="stepwise",
            images=(
                _image(_MODEL, "Qwen3Attention.__init__", "c9e3a07c70b7b692"),
                Image.of(_FORWARD, "07f217998484e0a6", "f95a85f74101c746", "44ae903a6e9c124c"),
                _image(_MODEL, "Qwen3Attention.forward_prepare_native", "a481fb69ca669615", "18bf98c474133af5"),
                _image(
                    "sglang.srt.layers.radix_attention",
                    "RadixAttention.forward",
                    "d4b5b1d5ffc52dda",
                    "ff478b0b3efb7725",
                ),
                _image(_ROPE, "MRotaryEmbedding.__init__", "b409ea463c47ed27", "6ecd702aed3c6c64"),
                _image(_ROPE, "MRotaryEmbedding._match_cos_sin_cache_dtype", "41fdf5c32827ae15"),
                _image(_POOL, "MHATokenToKVPool.get_kv_buffer", "42325664a6b2d0a7"),
                _image(_POOL, "MHATokenToKVPool.set_kv_buffer", "784a44bc3c7b30c9", "30544de4c1bbfb1e"),
            ),
            need=_stepwise,
            targets=(Target(_FORWARD, Method.REPLACE, make_forward),),
        ),
        Variant(
            name="fused-mrope",
            images=(
                _image(
                    _MODEL, "Qwen3Attention.forward_prepare_aiter_fused_mrope", "3a5f6d8a7e01b434", "3c80b58a849a158a"
                ),
            ),
            need=_fused,
        ),
        Variant(
            name="fused",
            images=(_image(_MODEL, "Qwen3Attention.forward_prepare_aiter_fused", "56bfb6c6f43ae071"),),
            need=_fused,
        ),
    ),
    verified_by="real class of five releases in the Triton interpreter against the definition, every guard tried; "
    "H200 in bf16 and fp16 under graph replay; offline compilation for gfx942 and gfx950",
    remove_when="the oldest supported release has a fused prologue with its guards",
)
