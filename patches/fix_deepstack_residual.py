"""Qwen3-VL on ROCm: the visual features of DeepStack reach the residual stream.

What is wrong upstream. Qwen3-VL adds features of earlier vision layers to the residual after each of its first layers.
Since #14636 (0.5.8) the models hand them to the next layer's input norm as `post_residual_addition`, which ROCm drops
in two places without a word, so that the model sees what the last vision layer gives and nothing of the earlier ones:

* 0.5.8 and 0.5.8.post1, always: `RMSNorm.forward_aiter` and `forward_hip` take the argument and never read it. 0.5.9
  adds it there, and so do `forward_cuda` and `forward_native` of 0.5.8.
* 0.5.10 to 0.5.20, with --enable-aiter-allreduce-fusion: `LayerCommunicator.prepare_attn` leaves it out where the
  previous layer's all-reduce is fused into the norm (communicator.py:461 of 0.5.10), which Qwen3-VL-MoE does under
  tensor parallelism. The same branch of 0.5.9 and before asks for sm90 or sm100. 0.5.21 does not fuse such a layer.

How we know it is right. Both are healed by 0.5.9's own statement, `residual = residual + post_residual_addition`,
before the release's unchanged function runs: rounded where `forward_cuda` rounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant, always

if TYPE_CHECKING:
    from torch import Tensor

    Normed = Tensor | tuple[Tensor, Tensor]

_NORM = "sglang.srt.layers.layernorm"
_AITER = Slot(_NORM, "RMSNorm.forward_aiter")
_HIP = Slot(_NORM, "RMSNorm.forward_hip")
_PREPARE = Slot("sglang.srt.layers.communicator", "LayerCommunicator.prepare_attn")
_FUSIONS = "sglang.srt.layers.layer_boundary.fusions.allreduce"


def make_forward(original: Any) -> Callable[..., Normed]:
    """`forward_aiter` or `forward_hip` of 0.5.8, reading its third argument as 0.5.9 does."""

    def forward(
        self: Any, x: Tensor, residual: Tensor | None = None, post_residual_addition: Tensor | None = None
    ) -> Normed:
        if residual is not None and post_residual_addition is not None:
            residual = residual + post_residual_addition
        result: Normed = original(self, x, residual)
        return result

    return forward


def make_prepare_attn(original: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """`prepare_attn` whose fused branch finds the addition in the residual already."""

    def prepare_attn(
        self: Any,
        hidden_states: Tensor,
        residual: Tensor | None,
        forward_batch: object,
        quant_format: str = "",
        post_residual_addition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if (
            post_residual_addition is not None
            and residual is not None
            and getattr(hidden_states, "_sglang_needs_allreduce_fusion", False)
            # Sequence parallelism (0.5.19) holds a shard of the residual, and leaves this branch alone.
            and residual.shape == post_residual_addition.shape
        ):
            residual, post_residual_addition = residual + post_residual_addition, None
        result: tuple[Tensor, Tensor] = original(
            self, hidden_states, residual, forward_batch, quant_format, post_residual_addition
        )
        return result

    return prepare_attn


_always = always(Need(True, "this release's RMSNorm drops post_residual_addition on ROCm; 0.5.9 adds it"))


def _with_aiter(facts: Facts) -> Need:
    if facts.is_on("SGLANG_USE_AITER"):
        return Need(True, "this release's prepare_attn drops post_residual_addition where aiter fuses the all-reduce")
    return Need(False, "SGLANG_USE_AITER is off: no all-reduce is fused into the norm, and RMSNorm adds it")


_FILLED = tuple(Target(slot, Method.REPLACE, make_forward) for slot in (_AITER, _HIP))

PATCH = Patch(
    id="fix-deepstack-residual",
    title="Qwen3-VL's DeepStack features are added on ROCm",
    why="0.5.8 and 0.5.8.post1 ignore post_residual_addition in RMSNorm on ROCm, so Qwen3-VL loses the visual features "
    "of its earlier vision layers without a word. 0.5.10 to 0.5.20 lose them for Qwen3-VL-MoE with "
    "--enable-aiter-allreduce-fusion.",
    upstream=("#14636",),
    contained_since="0.5.9, and 0.5.21 with --enable-aiter-allreduce-fusion",
    versions=">=0.5.8,<0.5.24",
    variants=(
        Variant(
            name="ignored-by-norm",
            images=(Image.of(_AITER, "98ca278350e4d733"), Image.of(_HIP, "48caa18476f7b32f")),
            need=_always,
            targets=_FILLED,
        ),
        Variant(
            name="fusion-for-cuda-only",
            images=(
                Image.of(_AITER, "daaff68374c031fc"),
                Image.of(_HIP, "72edae356abe74cf"),
                Image.of(_PREPARE, "df24db84b45a3c32"),
            ),
            need=always(Need(False, "RMSNorm adds it, and this release fuses no all-reduce on ROCm")),
        ),
        Variant(
            name="dropped-by-fusion",
            images=(
                Image.of(
                    _AITER,
                    "daaff68374c031fc",
                    "cd05b29a0b932137",
                    "52bb7178b1e66709",
                    "d80f2606704b1358",
                    "332b9506ea49a8f9",
                    "a6082518a9e54831",
                    "b00676b45260be6e",
                    "ec4df66440332ef6",
                ),
                Image.of(
                    _HIP,
                    "72edae356abe74cf",
                    "d1c86ecac76f480a",
                    "4f2d081aaeaea97d",
                    "8f81d2080d6390f9",
                    "e5595231d5ca8b3f",
                ),
                Image.of(
                    _PREPARE,
                    "5fee08b1cdd88241",
                    "e5fa7598655a04cf",
                    "c33fe4a221797263",
                    "eff3a5b3da388733",
                    "5bccefba2b142633",
                    "abe808df235caf47",
                ),
            ),
            need=_with_aiter,
            targets=(Target(_PREPARE, Method.REPLACE, make_prepare_attn),),
        ),
        *(
            Variant(
                name=name,
                images=(
                    Image.of(_AITER, "0c04d82278cf3327"),
                    Image.of(_HIP, "e5595231d5ca8b3f"),
                    Image.of(Slot(_FUSIONS, function), digest),
                ),
                need=always(Need(False, "RMSNorm adds it, and no all-reduce is fused into a norm that has to")),
            )
            for name, function, digest in (
                ("not-fused-0.5.21", "complete_attention_input", "977913289c445da4"),
                ("not-fused", "fused_attn_input", "cf76651ab4da31f0"),
            )
        ),
    ),
    verified_by="real RMSNorm of 0.5.8 and 0.5.8.post1 and real prepare_attn of 0.5.10 to 0.5.13 on the CPU: the sum "
    "is missing before and equal to forward_native's after, for forward_aiter, forward_hip and the fused branch",
    remove_when="0.5.20 is no longer supported",
)
