"""DeepSeek-V4 on ROCm, builds of 2026-05-26 and 05-27: attention with its compressors on other streams runs.

What is wrong upstream. #26208 gave ROCm a multi-stream form of the attention's preparation, on by default under graph
capture. It calls the indexer of a layer that compresses by 4 without `attn_backend` (deepseek_v4.py:640), which
`C4Indexer.forward` requires: capturing the first graph ends in a TypeError. #26383 passes it. It also keeps a layer
without a compressor, which has nothing for another stream, on the plain form.

How we know it is right. The backend that is missing is `get_attn_backend()`, where the caller took its own from. The
plain form is the layer's own method, and makes the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import dsv4_window as window

if TYPE_CHECKING:
    from torch import Tensor

_PREPARE = Slot(window.MODEL, "MQALayer._forward_prepare_multi_stream_hip")
_PLAIN = Slot(window.MODEL, "MQALayer._forward_prepare")
_INDEXER = Slot("sglang.srt.layers.attention.dsv4.indexer", "C4Indexer.forward")
_CONTEXT = Slot("sglang.srt.model_executor.forward_context", "get_attn_backend")
_SWITCH = "SGLANG_OPT_USE_MULTI_STREAM_OVERLAP"


def make_prepare(original: Any) -> Callable[..., Tensor]:
    """`MQALayer._forward_prepare_multi_stream_hip`: x (M, hidden) -> q (M, local heads, head dim)."""

    def forward_prepare_multi_stream_hip(
        self: Any,
        x: Tensor,
        positions: Tensor,
        forward_batch: Any,
        attn_backend: Any,
        q_out: Tensor | None = None,
        x_quant: Any = None,
    ) -> Tensor:
        if self.compressor is not None:
            return original(self, x, positions, forward_batch, attn_backend, q_out, x_quant=x_quant)  # type: ignore[no-any-return]
        q: Tensor
        # The plain form also returns kv, which it has written to the cache: nobody reads it after that.
        q, _kv = self._forward_prepare(x, positions, forward_batch, attn_backend, q_out, x_quant=x_quant)
        return q

    return forward_prepare_multi_stream_hip


def make_indexer_forward(original: Any) -> Callable[..., None]:
    """`C4Indexer.forward` with the attention backend of the current forward pass where the caller names none."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    def forward(
        self: Any, x: Tensor, q_lora: Tensor, forward_batch: Any, attn_backend: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        backend = get_attn_backend() if attn_backend is None else attn_backend
        original(self, x, q_lora, forward_batch, backend, *args, **kwargs)

    return forward


def _where_streams_are_used(facts: Facts) -> Need:
    if window.switched_off(facts, _SWITCH):
        return Need(False, f"{_SWITCH} is off: this build then prepares attention on one stream")
    return Need(
        True,
        "back-port of #26383: this build calls the indexer without its attention backend where it prepares attention "
        "on several streams, which ends the capture of the first graph",
    )


_before_streams = always(
    Need(False, "this build prepares attention on one stream on ROCm; the others came with #26208")
)


PATCH = Patch(
    id="dsv4-alt-stream",
    title="DeepSeek-V4's compressors on streams of their own under graph capture",
    why="Builds of 2026-05-26 and 05-27 prepare DeepSeek-V4's attention on several streams while a graph is captured, "
    "and leave out a required argument on the way: the server dies on the first graph.",
    upstream=(window.UPSTREAM, "#26208"),
    contained_since="0.5.13",
    versions=window.VERSIONS,
    variants=(
        Variant(
            name="without-the-backend",
            images=(
                window.HIP_RADIX,
                Image.of(Slot(window.MODEL, "MQALayer.forward"), "72c74ffd82c46995"),
                Image.of(_PREPARE, "394f621b00bef890"),
                Image.of(_PLAIN, "8c6785da124039cd"),
                Image.of(_INDEXER, "2e65b3ea9500bcf0"),
                Image.of(_CONTEXT, "eea60c8213a76939"),
            ),
            need=_where_streams_are_used,
            targets=(
                Target(_PREPARE, Method.REPLACE, make_prepare),
                Target(_INDEXER, Method.REPLACE, make_indexer_forward),
            ),
        ),
        Variant(name="one-stream", images=(window.HIP_RADIX, Image.of(_PREPARE, ABSENT)), need=_before_streams),
        window.contained(
            "passes the indexer its attention backend",
            Image.of(_PREPARE, "62756fbe9b91b3a5", "929f5a05901416fc"),
        ),
        window.NO_BACKEND,
    ),
    verified_by="the real layer and indexer of two builds: a TypeError without the patch; with it the indexer gets the "
    "backend of the pass, and a layer without a compressor takes the plain form",
    remove_when=window.REMOVE_WHEN,
)
