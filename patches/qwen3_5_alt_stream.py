"""Qwen3.5 on ROCm: shared and routed experts on two streams, and on request the GDN projections and the QK norms.

What upstream lacks. Through 0.5.12.post1 a Qwen3.5 model makes its alternate stream on CUDA only. #25885 (0.5.13) added
SGLANG_ALT_STREAM and two variables that go with it, all off by default; the forwards that use a stream are older.

What this does. Nothing, unless SGLANG_ALT_STREAM is on. Then one wrapper ends the model's constructor by giving one new
stream to the layers that are to use it: every forward stays upstream's own, with no Python frame added. Where #25885
gives the MoE block a stream only under --disable-shared-experts-fusion, this gives it one wherever the block has shared
experts of its own to overlap, as 0.5.14 means to; AMD_SGLANG_QWEN3_5_ALT_STREAM_PARITY takes #25885's rule instead.
With an all-to-all backend the MoE block keeps one stream: dispatch and combine have streams of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from overlay import gates
from overlay.gates import Gate
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, State, Target, Variant, always
from overlay.records import dataclass
from overlay.say import say
from overlay.stream_environment import ALT_STREAM, GDN_STREAM, QK_NORM_STREAM
from patches import streams

_MODEL = "sglang.srt.models.qwen3_5"
_BLOCK = "sglang.srt.models.qwen2_moe"

ALT = Gate(ALT_STREAM.name, "Qwen3.5 on ROCm: overlap shared and routed experts", False, ALT_STREAM.means_on)
GDN = Gate(
    GDN_STREAM.name,
    f"with {ALT.name}: overlap the two input projections of a GDN layer",
    False,
    GDN_STREAM.means_on,
)
QK = Gate(
    QK_NORM_STREAM.name,
    f"with {ALT.name}: overlap the norms of queries and keys",
    False,
    QK_NORM_STREAM.means_on,
)
PARITY = Gate(
    "AMD_SGLANG_QWEN3_5_ALT_STREAM_PARITY",
    "give MoE blocks a stream exactly where sglang 0.5.13 does: under --disable-shared-experts-fusion only",
    False,
    gates.boolean,
)


@dataclass(frozen=True)
class Asked:
    """What the environment asks for, as upstream reads it once at import."""

    gdn: bool
    qk: bool
    parity: bool

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Asked:
        return cls(GDN.read(environ), QK.read(environ), PARITY.read(environ))


#: What a release does with a wish of the user that he would not expect, or None.
Caveat = Callable[[Asked], "str | None"]


def _no_projections(asked: Asked) -> str | None:
    return f"{GDN.name} has no effect: this release cannot overlap the projections" if asked.gdn else None


def _no_caveat(_asked: Asked) -> str | None:
    return None


def _norms_unfused(asked: Asked) -> str | None:
    return f"{QK.name} replaces the fused QK norm kernel by two kernels in captured batches" if asked.qk else None


def _make_init(caveat: Caveat) -> Callable[[object], Callable[..., None]]:
    """Ends the constructor of `Qwen3_5ForCausalLM`, the text model inside every Qwen3.5, its MTP draft included."""

    def make(_original: object) -> Callable[..., None]:
        import torch

        asked = Asked.read(os.environ)
        said: set[str] = set()

        def wrapper(
            wrapped: Callable[..., None], instance: Any, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> None:
            wrapped(*args, **kwargs)
            for note in {caveat(asked), _all_to_all()} - {None, *said}:
                said.add(str(note))  # once a process: a draft model is built beside its target
                say(f"qwen3_5-alt-stream: {note}")
            forks = [*_projections(instance, asked), *_norms(instance, asked)]
            blocks = list(_blocks(instance, asked))
            if not forks and not blocks:
                return  # an idle stream may still take one of the few hardware queues
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            for module in forks:
                module.alt_stream = stream
            for block in blocks:
                streams.hand_over(block, stream)

        return wrapper

    return make


def _all_to_all() -> str | None:
    """Why no MoE block of this process may fork, or None."""
    from sglang.srt.layers.moe.utils import get_moe_a2a_backend

    backend = get_moe_a2a_backend()
    return None if backend.is_none() else f"MoE blocks keep one stream with the all-to-all backend {backend.value}"


def _projections(model: Any, asked: Asked) -> Iterator[Any]:
    """The GDN layers that can run their two projections at once: since 0.5.10, by `_forward_input_proj`."""
    for layer in model.layers:
        attention = getattr(layer, "linear_attn", None)
        if asked.gdn and hasattr(attention, "_forward_input_proj"):
            yield attention


def _norms(model: Any, asked: Asked) -> Iterator[Any]:
    """The attention layers, which run `_apply_qk_norm` on two streams."""
    for layer in model.layers:
        if asked.qk and hasattr(layer, "_apply_qk_norm"):
            yield layer


def _blocks(model: Any, asked: Asked) -> Iterator[Any]:
    """The MoE blocks that have something to overlap. Layers of other pipeline ranks are placeholders without `mlp`."""
    from sglang.srt.models.qwen2_moe import Qwen2MoeSparseMoeBlock
    from sglang.srt.server_args import get_global_server_args

    if _all_to_all():
        return
    for layer in model.layers:
        block = getattr(layer, "mlp", None)
        if not isinstance(block, Qwen2MoeSparseMoeBlock):
            continue
        if asked.parity:
            overlaps = get_global_server_args().disable_shared_experts_fusion
        else:  # a fused shared expert is one of the routed ones, and the block has none of its own
            overlaps = block.shared_expert is not None
        if overlaps:
            yield block


def _need(caveat: Caveat) -> Callable[[Facts], Need]:
    def need(facts: Facts) -> Need:
        asked = Asked.read(facts.environ)
        if not ALT.read(facts.environ):
            off = f"off: set {ALT.name}=1 to overlap the experts of Qwen3.5 on two streams"
            return Need(False, off, State.DISABLED)
        parts = ["experts", *["GDN projections"] * asked.gdn, *["QK norms"] * asked.qk]
        notes = "".join(f"; {note}" for note in (caveat(asked),) if note)
        return Need(True, f"back-port of #25885: Qwen3.5 overlaps {', '.join(parts)} on two streams{notes}")

    return need


_contained = always(Need(False, f"upstream reads {ALT.name} itself"))


_INIT = Slot(_MODEL, "Qwen3_5ForCausalLM.__init__")
_LINEAR_INIT = Slot(_MODEL, "Qwen3_5LinearDecoderLayer.__init__")
_ATTENTION_INIT = Slot(_MODEL, "Qwen3_5AttentionDecoderLayer.__init__")
_PROJECTIONS = Slot(_MODEL, "Qwen3_5GatedDeltaNet._forward_input_proj")
_NORMS = Slot(_MODEL, "Qwen3_5AttentionDecoderLayer._apply_qk_norm")
_BLOCK_INIT = Slot(_BLOCK, "Qwen2MoeSparseMoeBlock.__init__")
_BLOCK_FORWARD = Slot(_BLOCK, "Qwen2MoeSparseMoeBlock.forward")
_DUAL = Image.of(Slot(_BLOCK, "Qwen2MoeSparseMoeBlock.forward_normal_dual_stream"), "00d3a464d074754b")

PATCH = Patch(
    id="qwen3_5-alt-stream",
    title="Qwen3.5 overlaps its experts, on request its GDN projections and QK norms, on two streams",
    why="On CUDA the shared and the routed experts of Qwen3.5 run at once; on ROCm one follows the other until 0.5.13, "
    "and there too unless asked. #25885 measured 1.8 % less time per token where shared experts are not fused.",
    upstream=("#25885",),
    contained_since="0.5.13",
    versions=">=0.5.9,<0.5.24",
    gates=(ALT, GDN, QK, PARITY),
    requires=("fix-dual-stream-inplace",),
    variants=(
        Variant(
            name="without-projections",
            images=(
                Image.of(_INIT, "5d41f63f847320db"),
                Image.of(_LINEAR_INIT, "ed0d29b952d30726"),
                Image.of(_ATTENTION_INIT, "ef79951f9ab7e8cf"),
                Image.of(_PROJECTIONS, ABSENT),
                Image.of(_NORMS, "7b7c672a77592e78"),
                Image.of(_BLOCK_INIT, "910c01883f4ca2a1"),
                Image.of(_BLOCK_FORWARD, "cb93dfac2a3ac36a"),
                _DUAL,
            ),
            need=_need(_no_projections),
            targets=(Target(_INIT, Method.WRAP, _make_init(_no_projections)),),
        ),
        Variant(
            name="separate-norms",
            images=(
                Image.of(_INIT, "34ffb90df36cbbbf"),
                Image.of(_LINEAR_INIT, "868d05bf6b8c6f14"),
                Image.of(_ATTENTION_INIT, "47c7f7d40c8391b7"),
                Image.of(_PROJECTIONS, "b0e41bd6a0c292cf"),
                Image.of(_NORMS, "7b7c672a77592e78"),
                Image.of(_BLOCK_INIT, "47606a97b847a78f"),
                Image.of(_BLOCK_FORWARD, "124711e825819460"),
                _DUAL,
            ),
            need=_need(_no_caveat),
            targets=(Target(_INIT, Method.WRAP, _make_init(_no_caveat)),),
        ),
        Variant(
            name="fused-norms",
            images=(
                Image.of(_INIT, "62052819eb952962"),
                Image.of(_LINEAR_INIT, "dcc3b139257ad63e"),
                Image.of(_ATTENTION_INIT, "4d15b5736e50582b"),
                Image.of(_PROJECTIONS, "b0e41bd6a0c292cf"),
                Image.of(_NORMS, "54b33a9fd1d94ea2"),
                Image.of(_BLOCK_INIT, "a7455c2b77aaa986"),
                Image.of(_BLOCK_FORWARD, "f48a27d443da74da"),
                _DUAL,
            ),
            need=_need(_norms_unfused),
            targets=(Target(_INIT, Method.WRAP, _make_init(_norms_unfused)),),
        ),
        Variant(
            name="upstream",
            images=(
                Image.of(
                    _INIT,
                    "5ce6e6d4babc5ca1",
                    "eeb3dbab77137177",
                    "eaf08ab3bcc1923d",
                    "140f6c3fad55ceff",
                    "9379f4d6610af40b",
                    "ebabbc12c01a6631",
                    "5e4cdcb37d1f3724",
                    "07d4bc661c891b92",
                ),
            ),
            need=_contained,
        ),
    ),
    verified_by="real classes of four releases: all 64 combinations of variables, fusion and AITER against the table, "
    "with 0.5.13's own constructor beside it; draft model, pipeline ranks, vision model; no frame added to any forward",
    remove_when="the oldest supported release is 0.5.13",
)
