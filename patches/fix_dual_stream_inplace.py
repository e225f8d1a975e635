"""Two streams, one tensor: the routed experts must not write over what the shared experts still read.

What is wrong upstream. `forward_normal_dual_stream` runs the shared and the routed experts of an MoE block on two
streams, both reading `hidden_states`, and the Triton experts write their result over it (`inplace`, true by default).
Nothing orders that write after the other stream's reads: a graph replays whichever order the hardware takes. 0.5.14
made Qwen's experts write elsewhere (qwen2_moe.py:292); DeepSeek's still race in 0.5.23, where the roles are swapped
and the shared experts run on the second stream.

What this does. A block that holds a stream when its constructor returns has its experts run out of place, which costs
one activation tensor. A block without a stream is left alone. The patches that hand out streams require this one.

How we know it is right. A happens-before detector over the real forward of six releases finds exactly that race with
`inplace`, and none without; outputs are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always
from patches.streams import run_out_of_place

_QWEN = "sglang.srt.models.qwen2_moe"
_DEEPSEEK = "sglang.srt.models.deepseek_v2"
_QWEN_INIT = Slot(_QWEN, "Qwen2MoeSparseMoeBlock.__init__")
_QWEN_DUAL = Slot(_QWEN, "Qwen2MoeSparseMoeBlock.forward_normal_dual_stream")
_DEEPSEEK_INIT = Slot(_DEEPSEEK, "DeepseekV2MoE.__init__")
_DEEPSEEK_DUAL = Slot(_DEEPSEEK, "DeepseekV2MoE.forward_normal_dual_stream")


def make_init(_original: object) -> Callable[..., None]:
    """Ends the constructor of an MoE block by moving its experts' output, if the block was given a stream."""

    def wrapper(
        wrapped: Callable[..., None], instance: Any, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        wrapped(*args, **kwargs)
        if instance.alt_stream is not None:
            run_out_of_place(instance)

    return wrapper


_both_race = always(
    Need(True, "experts of a block with a second stream write over what that stream reads: Qwen's and DeepSeek's")
)


_deepseek_races = always(
    Need(True, "DeepSeek's experts write over what the block's second stream reads; Qwen's do not in this release")
)


_QWEN_TARGET = Target(_QWEN_INIT, Method.WRAP, make_init)
_DEEPSEEK_TARGET = Target(_DEEPSEEK_INIT, Method.WRAP, make_init)

PATCH = Patch(
    id="fix-dual-stream-inplace",
    title="no write of the experts over the input that another stream reads",
    why="An MoE block with an alternate stream runs its shared and its routed experts at once on one tensor, and the "
    "Triton experts overwrite that tensor: with --moe-runner-backend triton, without AITER, and where AITER falls back "
    "to Triton, the shared experts may read half of the result instead of their input.",
    upstream=("#24005", "#25885"),
    contained_since="0.5.14 for Qwen, nowhere yet for DeepSeek",
    versions=">=0.5.9,<0.5.24",
    variants=(
        Variant(
            name="both-race",
            images=(
                Image.of(_QWEN_INIT, "910c01883f4ca2a1", "47606a97b847a78f", "a7455c2b77aaa986", "b7c6799573511b45"),
                Image.of(_QWEN_DUAL, "00d3a464d074754b", "3cdabebc2540c9e3"),
                Image.of(
                    _DEEPSEEK_INIT,
                    "0db17852aeddf859",
                    "886681f612a178ec",
                    "ef5370f2764ca79b",
                    "1325d3a9e601e640",
                    "d84de176563626c3",
                ),
                Image.of(
                    _DEEPSEEK_DUAL,
                    "1e441e0f4928a346",
                    "6b3631f4b15becf9",
                    "98402dbdb3e62672",
                    "d2603a415c42ce0d",
                    "9f59de6033528d39",
                ),
            ),
            need=_both_race,
            targets=(_QWEN_TARGET, _DEEPSEEK_TARGET),
        ),
        Variant(
            name="deepseek-races",
            images=(
                Image.of(
                    _QWEN_INIT,
                    "a133d4ea5536015b",
                    "939fbfd55e0a9451",
                    "2f10b7f7e52ebf16",
                    "5eeaf7e0cb784f42",
                    "2b6d5992694aca58",
                    "06bd68c8db36f281",
                    "82cd417f00a78657",
                    "cd451e5faf5ec9c2",
                    "efea1f4c3b330710",
                ),
                Image.of(_QWEN_DUAL, "d9052ca594063730", "80cc7e5a02665bf8"),
                Image.of(
                    _DEEPSEEK_INIT,
                    "3f12c069ed80e023",
                    "0227d50f3b084669",
                    "2fe32a5889f21c58",
                    "ae0bb99dd3eb050a",
                    "23cc75e1a6267906",
                    "d1dd7c6646cdbe46",
                    "883ba3e2100379ed",
                    "051b6caa6cdaf48d",
                    "f042d8e493290ad7",
                    "3e896f3cb01aa488",
                ),
                Image.of(
                    _DEEPSEEK_DUAL,
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
            need=_deepseek_races,
            targets=(_DEEPSEEK_TARGET,),
        ),
    ),
    verified_by="happens-before over the real dual-stream forward of six releases, with its negative control: one race "
    "with inplace, none without, and bit-identical outputs",
    remove_when="the oldest supported release runs DeepSeek's experts out of place where they share their input",
)
