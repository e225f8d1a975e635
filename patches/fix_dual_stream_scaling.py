"""DeepSeek's two-stream MoE forward: the routed experts are scaled once.

What is wrong upstream. `DeepseekV2MoE.forward_normal_dual_stream` multiplies the routed experts by
`routed_scaling_factor` wherever `_is_cuda` is false (deepseek_v2.py:610 in 0.5.9, :785 in 0.5.12), but aiter's biased
grouped top-k has put that factor into the weights already, and `forward_normal` knows it (`not _use_aiter`, :686 in
0.5.9). With the alternate stream of #24005 and aiter, the routed part comes out 2.5 times too large in DeepSeek-V3.
0.5.13 fixed the condition.

How we know it is right. The correction runs upstream's own code with `_is_cuda` read as true, on exactly the blocks
whose top-k scales: the result then equals `forward_normal`, which the tests check number by number. A function of any
other shape is refused. No frame is added to the forward.
"""

from __future__ import annotations

import dis
from types import FunctionType, MethodType
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

_MODEL = "sglang.srt.models.deepseek_v2"
_TOPK = "sglang.srt.layers.moe.topk"
_LAYER_INIT = Slot(_MODEL, "DeepseekV2DecoderLayer.__init__")
_DUAL = Slot(_MODEL, "DeepseekV2MoE.forward_normal_dual_stream")
_NORMAL = Slot(_MODEL, "DeepseekV2MoE.forward_normal")
_TOPK_INIT = Slot(_TOPK, "TopK.__init__")
_GROUPED = Slot(_TOPK, "biased_grouped_topk_gpu")

_CONDITION = "_is_cuda"
#: A name that is true in every module, because none defines it: `builtins` does.
_TRUE = "True"


class UnknownForwardError(RuntimeError):
    """The two-stream forward of a block is not built as in any release that was read."""

    def __init__(self, block: object, problem: str) -> None:
        super().__init__(
            f"{type(block).__name__}.forward_normal_dual_stream (layer {getattr(block, 'layer_id', '?')}) {problem}: "
            "whether it scales its routed experts twice cannot be told. Serve without SGLANG_ROCM_USE_MULTI_STREAM."
        )


def correct_scaling(block: Any) -> None:
    """Make the two-stream forward of a `DeepseekV2MoE` scale its routed experts once. Idempotent.

    To be called before the block is captured in a graph. Does nothing where top-k leaves the scaling to the forward, or
    where the release knows of aiter there (0.5.13). Raises UnknownForwardError, with the block as it was.
    """
    if not _topk_scales(block):
        return
    shipped = type(block).forward_normal_dual_stream
    if type(shipped) is not FunctionType:
        raise UnknownForwardError(block, f"is a {type(shipped).__name__}, not a function")
    code = shipped.__code__
    if "_use_aiter" in code.co_names:
        return
    loads = sum(i.argval == _CONDITION and i.opname == "LOAD_GLOBAL" for i in dis.get_instructions(code))
    if loads != 1:
        raise UnknownForwardError(block, f"reads {_CONDITION} {loads} times, not once")
    names = tuple(_TRUE if name == _CONDITION else name for name in code.co_names)
    corrected = FunctionType(
        code.replace(co_names=names), shipped.__globals__, shipped.__name__, shipped.__defaults__, shipped.__closure__
    )
    block.forward_normal_dual_stream = MethodType(corrected, block)


def _topk_scales(block: Any) -> bool:
    """Whether the weights that top-k hands to the experts contain the routed scaling factor.

    aiter's biased grouped top-k does that and nothing else does: neither grouped top-k without a bias (DeepSeek-V2),
    nor the ungrouped and the hashed one of DeepSeek-V4.
    """
    from sglang.srt.layers.moe import topk

    if not topk._use_aiter or not isinstance(block.topk, topk.TopK):
        return False
    config = block.topk.topk_config
    return bool(config.use_grouped_topk) and config.correction_bias is not None


def make_layer_init(_original: object) -> Any:
    """Around `DeepseekV2DecoderLayer.__init__`: the correction, where upstream itself gave the block a stream."""
    from sglang.srt.models.deepseek_v2 import DeepseekV2MoE

    def init(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        if isinstance(instance.mlp, DeepseekV2MoE) and instance.mlp.alt_stream is not None:
            correct_scaling(instance.mlp)

    return init


# Whatever the variables say: a block may be given a stream after this was decided.
_needed = always(Need(True, "the two-stream forward of this release scales the routed experts twice with aiter"))


_contained = always(Need(False, "this release's two-stream forward leaves the scaling to aiter's top-k"))


PATCH = Patch(
    id="fix-dual-stream-scaling",
    title="DeepSeek's routed experts scaled once on two streams",
    why="Through 0.5.12.post1 DeepSeek's two-stream MoE forward multiplies the routed experts by routed_scaling_factor "
    "although aiter's top-k has done so: wrong answers with SGLANG_ROCM_USE_MULTI_STREAM=1 and SGLANG_USE_AITER=1.",
    upstream=("#24005",),
    contained_since="0.5.13",
    versions=">=0.5.9,<0.5.24",
    variants=(
        Variant(
            name="scales-without-cuda",
            images=(
                Image.of(_LAYER_INIT, "d8087016b06ace8b", "abfd5179c9d9faef", "2549f43ca0e787d5", "74c33c6fdf0792d0"),
                Image.of(_DUAL, "1e441e0f4928a346", "6b3631f4b15becf9", "98402dbdb3e62672", "d2603a415c42ce0d"),
                Image.of(_NORMAL, "00be5efe33515512", "28921af189d95bb7", "2b2305f26a2b678c", "ba2394823ed4a9ad"),
                Image.of(_TOPK_INIT, "396ef55fe18d728e", "68311908794aa18b"),
                Image.of(_GROUPED, "b6c1ef0594816575", "d10e391bb185fb7c", "67273eb30eca686c"),
            ),
            need=_needed,
            targets=(Target(_LAYER_INIT, Method.WRAP, make_layer_init),),
        ),
        Variant(
            name="knows-of-aiter",
            images=(
                Image.of(
                    _DUAL,
                    "9f59de6033528d39",
                    "0fe9fc88ee551cba",
                    "25b5f187e773dbbc",
                    "ab1b1a55a7169dd6",
                    "7411df2b268603d1",
                    "0fce2c56bdfbb556",
                    "1954955e4d81e5c8",
                    "c8c71960e5902577",
                    "04d160e700501608",
                ),
            ),
            need=_contained,
        ),
    ),
    verified_by="real DeepseekV2MoE of 0.5.9, 0.5.10.post1, 0.5.11 and 0.5.12.post1 on the simulated ROCm: the shipped "
    "two-stream forward differs from forward_normal, the corrected one equals it; 0.5.13 equals it as shipped",
    remove_when="0.5.13 is the oldest supported release",
)
