"""DeepSeek-V4 on ROCm, builds of 2026-05-23 to 05-27: one GEMM for the two projections that open an attention.

What is missing. `wq_a` and `wkv` read the same hidden states. CUDA has them as one matrix, `wqkv_a`, behind
SGLANG_OPT_FUSE_WQA_WKV, which is on by default; `not _is_hip` keeps ROCm out, in the layer and where its weights are
loaded (deepseek_v4.py:322, :1762). #26383 drops that, and changes nothing else for it.

How we know it is right. Every reader of the projections asks the layer's `fuse_wqa_wkv`; the release's own loader puts
the two weights and their scales into one; and each output is the same row times the same input. Both places are
patched, or neither. Builds before #25898 (2026-05-23) have another preparation of attention and are left as they are.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import dsv4_window as window

_LAYER = Slot(window.MODEL, "MQALayer.__init__")
_LOAD = Slot(window.MODEL, "DeepseekV4ForCausalLM.load_weights")
_SWITCH = "SGLANG_OPT_FUSE_WQA_WKV"


def make_init(_original: object) -> Callable[..., None]:
    """Around `MQALayer.__init__`: the layer is built as before, and gets `wqkv_a` in place of `wq_a` and `wkv`."""
    model = importlib.import_module(window.MODEL)

    def init(wrapped: Any, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        given = inspect.signature(wrapped).bind(*args, **kwargs)
        given.apply_defaults()
        del layer.wq_a, layer.wkv
        layer.wqkv_a = model.ReplicatedLinear(
            layer.hidden_size,
            layer.q_lora_rank + layer.head_dim,
            bias=False,
            quant_config=given.arguments["quant_config"],
            prefix=model.add_prefix("wqkv_a", given.arguments["prefix"]),
        )
        layer.fuse_wqa_wkv = True

    return init


def make_load_weights(original: Any) -> Callable[..., Any]:
    """`DeepseekV4ForCausalLM.load_weights`, which takes the platform for one that fuses.

    `_is_hip` decides nothing else in that function. It runs over a copy of the module's names made at each call, so
    that whatever else was patched there is seen.
    """
    code: FunctionType = original

    def load_weights(self: Any, weights: Any, is_nextn: bool = False) -> Any:
        names = {**code.__globals__, "_is_hip": False}
        fusing = FunctionType(code.__code__, names, code.__name__, code.__defaults__, code.__closure__)
        return fusing(self, weights, is_nextn=is_nextn)

    return load_weights


def _where_wanted(facts: Facts) -> Need:
    if window.switched_off(facts, _SWITCH):
        return Need(False, f"{_SWITCH} is off: nobody wants the projections as one")
    return Need(True, "back-port of #26383: this build keeps ROCm from running wq_a and wkv as one GEMM")


_unread = always(
    Need(
        False,
        "left as it is: this build keeps ROCm from running wq_a and wkv as one GEMM, and prepares attention as before "
        "#25898, where #26383 never did otherwise",
    )
)


def _layer(name: str, *digests: str) -> Image:
    return Image.of(Slot(window.MODEL, f"MQALayer.{name}"), *digests)


PATCH = Patch(
    id="dsv4-wqkv-fusion",
    title="one GEMM for wq_a and wkv of DeepSeek-V4",
    why="Builds of 2026-05-23 to 05-27 read the hidden states twice at the start of every attention of DeepSeek-V4 on "
    "ROCm, where CUDA runs both projections as one GEMM.",
    upstream=(window.UPSTREAM,),
    contained_since="0.5.13",
    versions=window.VERSIONS,
    variants=(
        Variant(
            name="gated",
            images=(
                window.HIP_RADIX,
                Image.of(_LAYER, "f4da47f8d3c1e57b"),
                Image.of(_LOAD, "00eafc0f76b18f6a"),
                _layer("_forward_prepare", "8c6785da124039cd"),
                _layer("_compute_kv_to_cache", "1d8499d47c6c7e8b"),
                _layer("_compute_kv_bf16", "9c46dc80b59abd38"),
            ),
            need=_where_wanted,
            targets=(
                Target(_LAYER, Method.WRAP, make_init),
                Target(_LOAD, Method.REPLACE, make_load_weights),
            ),
        ),
        Variant(
            name="gated-before-#25898",
            images=(window.HIP_RADIX, Image.of(_LAYER, "acb964dc8b49c068", "7110af08cb29f0e2")),
            need=_unread,
        ),
        window.contained(
            "runs wq_a and wkv as one GEMM on ROCm too",
            Image.of(_LAYER, "49cd8814b9f8d7d7"),
        ),
        window.NO_BACKEND,
    ),
    verified_by="the real layer and loader of three builds: two projections without the patch, one with it, whose "
    "outputs are the rows of the two",
    remove_when=window.REMOVE_WHEN,
)
