"""DeepSeek on ROCm: shared and routed experts on two streams.

What upstream lacks. Through 0.5.11 `DeepseekV2Model` makes its alternate stream on CUDA only. #24005 (0.5.12) made one
on request, SGLANG_ROCM_USE_MULTI_STREAM=1; every forward that uses it is older.

What this does. It registers the variable with sglang's `envs` and ends the model's constructor by handing one new
stream to what #24005 gives one: attention and MoE blocks. The stream goes to no block before both of its fix-ups are
in force, `patches.streams` and `patches.fix_dual_stream_scaling`. Draft models (nextn) and the indexer of sparse
attention keep what they have, and no forward gains a Python frame.

Parity. With the defaults of its two switches this does what #24005 does, minus its wrong numbers, for which there is no
switch. It differs where that cannot be observed: ROCm only, and no stream for blocks whose shared experts are fused
with the routed ones, which have nothing to overlap (0.5.9's forward_deepep would call a method of None on them).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from overlay import gates
from overlay.gates import Gate
from overlay.model import ABSENT, Image, Method, Need, Patch, Slot, Target, Variant, always
from overlay.stream_environment import MULTI_STREAM
from patches import streams
from patches.fix_dual_stream_scaling import correct_scaling

_MODEL = "sglang.srt.models.deepseek_v2"
_ENVIRON = "sglang.srt.environ"
_INIT = Slot(_MODEL, "DeepseekV2Model.__init__")
_ATTENTION_INIT = Slot(_MODEL, "DeepseekV2AttentionMLA.__init__")
_FORWARD = Slot(_MODEL, "DeepseekV2MoE.forward")
_DEEPEP = Slot(_MODEL, "DeepseekV2MoE.forward_deepep")
_VARIABLE = Slot(_ENVIRON, f"Envs.{MULTI_STREAM.name}")

MLA = Gate(
    "AMD_SGLANG_DEEPSEEK_DUAL_STREAM_MLA",
    f"with {MULTI_STREAM.name}: also fork in the attention of DeepSeek, as sglang 0.5.12 does; off "
    "keeps its fused RMSNorm and quantisation (gfx95)",
    True,
    gates.boolean,
)
CAPTURE_ONLY = Gate(
    "AMD_SGLANG_DEEPSEEK_DUAL_STREAM_CAPTURE_ONLY",
    f"with {MULTI_STREAM.name}: never fork outside graph capture, where waiting for a HIP event can "
    "hang; off forks in the prefill of all-to-all backends too, as sglang 0.5.12 does",
    False,
    gates.boolean,
)


def make_variable(_absent: object) -> object:
    """`Envs.SGLANG_ROCM_USE_MULTI_STREAM`, as 0.5.12 defines it (environ.py:333)."""
    from sglang.srt.environ import EnvBool

    variable = EnvBool(False)
    variable.name = MULTI_STREAM.name  # what __set_name__ does for a name in a class body
    return variable


def make_init(_original: object) -> Callable[..., None]:
    """Around `DeepseekV2Model.__init__`: one stream for the attention and the MoE blocks of this model."""
    mla, capture_only = MLA.read(os.environ), CAPTURE_ONLY.read(os.environ)

    def init(wrapped: Callable[..., None], instance: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        from sglang.srt.environ import envs

        wrapped(*args, **kwargs)
        # Upstream has made a stream of its own under SGLANG_NPU_USE_MULTI_STREAM, which it reads on ROCm as well.
        if instance.alt_stream is None and envs.SGLANG_ROCM_USE_MULTI_STREAM.get():
            _hand_out(instance, mla=mla, capture_only=capture_only)

    return init


def _hand_out(model: Any, *, mla: bool, capture_only: bool) -> None:
    import torch
    from sglang.srt.models.deepseek_v2 import DeepseekV2DecoderLayer, DeepseekV2MoE

    # The layers of other pipeline ranks are placeholders of another class.
    layers = [layer for layer in model.layers if isinstance(layer, DeepseekV2DecoderLayer)]
    attention = [layer.self_attn for layer in layers] if mla else []
    blocks = [
        layer.mlp for layer in layers if isinstance(layer.mlp, DeepseekV2MoE) and not layer.mlp.num_fused_shared_experts
    ]
    if not attention and not blocks:
        return  # an idle stream may still take one of the few hardware queues
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for block in blocks:
        correct_scaling(block)
        streams.hand_over(block, stream)
        if capture_only:
            _fork_in_capture_only(block)
    for module in (model, *attention):
        module.alt_stream = stream


def _fork_in_capture_only(block: Any) -> None:
    """Take the stream from `forward_deepep` outside graph capture. The other forwards look at the capture mode."""
    from sglang.srt.model_executor.cuda_graph_runner import get_is_capture_mode

    stream, forked = block.alt_stream, block.forward_deepep

    def forward_deepep(*args: Any, **kwargs: Any) -> Any:
        block.alt_stream = stream if get_is_capture_mode() else None
        return forked(*args, **kwargs)

    block.forward_deepep = forward_deepep


# Whatever the variable says: it is registered here, and sglang reads it when a model is built.
_needed = always(
    Need(True, f"back-port of #24005: DeepSeek overlaps its experts on two streams where {MULTI_STREAM.name} is on")
)
_contained = always(Need(False, f"upstream reads {MULTI_STREAM.name} itself"))


PATCH = Patch(
    id="deepseek-dual-stream",
    title="DeepSeek overlaps its shared and routed experts on two streams",
    why="On CUDA DeepSeek's shared and routed experts run at once; on ROCm one follows the other until 0.5.12, and "
    "there too unless asked. #24005 measured 14 % less time per token with Mori's AsyncLL dispatch.",
    upstream=("#24005",),
    contained_since="0.5.12",
    versions=">=0.5.9,<0.5.24",
    gates=(MLA, CAPTURE_ONLY),
    requires=("fix-dual-stream-inplace", "fix-dual-stream-scaling"),
    variants=(
        Variant(
            name="cuda-only",
            images=(
                Image.of(_INIT, "df009b0ca3b53165", "f8590d1c7be00a19"),
                Image.of(_ATTENTION_INIT, "635c0a6e601ac3de", "95dff2623b69fa96"),
                Image.of(_FORWARD, "d67dac3f30bd3184", "744a2e0cdbdfacd9", "49469adb4d139d82"),
                Image.of(_DEEPEP, "4dfb7bc457fc3e88", "fe4e2c0d4494bcf5"),
                Image.of(_VARIABLE, ABSENT),
                Image.of(Slot(_ENVIRON, "EnvBool.parse"), "a6fa67fea524fa56"),
            ),
            need=_needed,
            targets=(
                Target(_VARIABLE, Method.DEFINE, make_variable),
                Target(_INIT, Method.WRAP, make_init),
            ),
        ),
        Variant(
            name="upstream",
            images=(
                Image.of(
                    _INIT,
                    "7e4040ecca428eeb",
                    "f655340034097836",
                    "1f3f3eaebd8ce5ef",
                    "9420d1634d95463f",
                    "95c8ccb2caecdbb3",
                    "2866b08dcb380b1c",
                    "8ebde42fa4f8d01f",
                    "3ed59ef85e4523d7",
                ),
            ),
            need=_contained,
        ),
    ),
    verified_by="real DeepseekV2Model of 0.5.9, 0.5.10.post1 and 0.5.11 on the simulated ROCm, with 0.5.12.post1's and "
    "0.5.13's own beside it: who holds the stream under every value of the variable, and outputs equal to one stream",
    remove_when="0.5.12 is the oldest supported release",
)
