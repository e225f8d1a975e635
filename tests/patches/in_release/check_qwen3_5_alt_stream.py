"""What `qwen3_5-alt-stream` does to the real Qwen3.5 classes of one release, and what 0.5.13 does by itself.

Not collected by name: `test_alt_streams.py` runs this file under the overlay, in the simulated ROCm, once per release,
with SGLANG_ALT_STREAM on. Every combination is decided and installed anew, from the release's own files.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from packaging.version import Version

from benchmarks.dual_stream_frames import by_the_overlay, by_upstream, measure
from overlay import runtime
from overlay.install import Ledger, held
from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.preimage import Proof
from overlay.registry import Registry
from overlay.simulate import torch_streams
from overlay.source import installed_tree
from patches import fix_dual_stream_inplace, qwen3_5_alt_stream
from tests.patches.in_release import one_rank
from tests.patches.in_release.qwen3_5_models import HIDDEN, build, text_config, vision_language_config
from tests.races import RaceDetector

RELEASE = Version(version("sglang"))
BY_UPSTREAM = Version("0.5.13") <= RELEASE
FUSES = Version("0.5.11") <= RELEASE
PIPELINES = Version("0.5.10") <= RELEASE
ALT, GDN, QK = "SGLANG_ALT_STREAM", "SGLANG_GDN_QKVZ_BA_ALT_STREAM", "SGLANG_QK_NORM_ALT_STREAM"
PARITY = "AMD_SGLANG_QWEN3_5_ALT_STREAM_PARITY"
BOOLEANS = (False, True)

#: (fusion disabled, aiter, can fuse) -> fused experts, stream of the MoE block here, and in 0.5.13.
MOE = {
    (False, False, False): (0, True, False),
    (False, False, True): (0, True, False),
    (False, True, False): (0, True, False),
    (False, True, True): (1, False, False),
    (True, False, False): (0, True, True),
    (True, False, True): (0, True, True),
    (True, True, False): (0, True, True),
    (True, True, True): (0, True, True),
}


@pytest.fixture(scope="session", autouse=True)
def server_args() -> Any:
    """A server of one rank, in whose process the overlay did what the environment asks for; then that is taken out."""
    args = one_rank.start()
    from sglang.srt.models import deepseek_v2, qwen3_5_mtp

    assert deepseek_v2 and qwen3_5_mtp
    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state("fix-dual-stream-inplace")[0] is State.APPLIED
    state = overlay.state("qwen3_5-alt-stream")
    assert state[0] is (State.CONTAINED if BY_UPSTREAM else State.APPLIED), state
    if not BY_UPSTREAM:
        assert streams_of(moe_model(can_fuse=False)).moe == [True, True]
        overlay.uninstall("qwen3_5-alt-stream")
    assert BY_UPSTREAM or not any(streams_of(moe_model(can_fuse=False)).moe)
    return args


class Streams(NamedTuple):
    """Which parts of a model hold a stream, and which streams there are."""

    gdn: list[bool]
    qk: list[bool]
    moe: list[bool]
    streams: set[object]


def streams_of(model: Any) -> Streams:
    parts = {
        "gdn": [x.linear_attn.alt_stream for x in model.layers if hasattr(x, "linear_attn")],
        "qk": [x.alt_stream for x in model.layers if hasattr(x, "alt_stream")],
        "moe": [x.mlp.alt_stream for x in model.layers if hasattr(getattr(x, "mlp", None), "experts")],
    }
    held_streams = {stream for holders in parts.values() for stream in holders if stream is not None}
    return Streams(**{k: [s is not None for s in holders] for k, holders in parts.items()}, streams=held_streams)


@cache
def decision(environ: tuple[tuple[str, str], ...]) -> Decision:
    overlay = runtime.current()
    assert overlay is not None
    registry = Registry((fix_dual_stream_inplace.PATCH, qwen3_5_alt_stream.PATCH))
    return make_plan(registry, installed_tree(), overlay.plan.platform, dict(environ)).decisions[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Decision]]:
    """Puts the release in the state in which a process that asks for some of the variables has it."""
    ledger = Ledger()

    def ask(*names: str) -> Decision:
        from sglang.srt.models import qwen3_5

        for name in (ALT, GDN, QK, PARITY):
            monkeypatch.delenv(name, raising=False)
        for name in names:
            monkeypatch.setenv(name, "1")
        made = decision(tuple((name, "1") for name in names))
        if made.state is State.PLANNED:
            ledger.install("asked", made.targets)
        if BY_UPSTREAM:  # read once, at import
            flags = {"_hip_use_alt_stream": ALT, "_gdn_use_alt_stream": GDN, "_qknorm_use_alt_stream": QK}
            for flag, name in flags.items():
                monkeypatch.setattr(qwen3_5, flag, {ALT, name} <= set(names))
        return made

    yield ask
    if "asked" in ledger:
        ledger.uninstall("asked")


@pytest.fixture
def aiter(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches what the release took from SGLANG_USE_AITER at import; 0.5.9 and 0.5.10 do not ask in these modules."""

    def switch(on: bool) -> None:
        from sglang.srt.models import qwen2_moe, qwen3_5

        for module in (qwen2_moe, qwen3_5):
            if hasattr(module, "_use_aiter"):
                monkeypatch.setattr(module, "_use_aiter", on)

    return switch


def moe_model(**arguments: bool) -> Any:
    from sglang.srt.models.qwen3_5 import Qwen3_5MoeForCausalLM

    return build(Qwen3_5MoeForCausalLM, config=text_config(**arguments))


@pytest.mark.parametrize(("disabled", "with_aiter", "can_fuse"), MOE)
@pytest.mark.parametrize(("alt", "gdn", "qk"), list(itertools.product(BOOLEANS, repeat=3)))
def test_every_combination(
    asked: Callable[..., Decision],
    aiter: Callable[[bool], None],
    server_args: Any,
    monkeypatch: pytest.MonkeyPatch,
    alt: bool,
    gdn: bool,
    qk: bool,
    disabled: bool,
    with_aiter: bool,
    can_fuse: bool,
) -> None:
    asked(*[name for name, on in ((ALT, alt), (GDN, gdn), (QK, qk)) if on])
    aiter(with_aiter)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", disabled)
    before = copy.copy(vars(server_args))
    model = moe_model(can_fuse=can_fuse)
    found = streams_of(model)

    fused, here, upstream = MOE[disabled, with_aiter, can_fuse]
    if not FUSES:
        fused, here = 0, True
    projections = hasattr(type(model.layers[0].linear_attn), "_forward_input_proj")
    assert projections is (Version("0.5.10") <= RELEASE)
    if BY_UPSTREAM:  # its layers hold the stream always and ask the flag in every forward
        assert found.gdn == found.qk == [alt]
        assert found.moe == [alt and upstream] * 2
        assert len(found.streams) == alt
    else:
        assert found.gdn == [alt and gdn and projections]
        assert found.qk == [alt and qk]
        assert found.moe == [alt and here] * 2
        assert len(found.streams) == (alt and (here or qk or (gdn and projections)))
    blocks = [layer.mlp for layer in model.layers]
    assert [getattr(block, "num_fused_shared_experts", 0) for block in blocks] == [fused] * 2
    assert [not block.experts.moe_runner_config.inplace for block in blocks] == found.moe
    assert vars(server_args) == before


@pytest.mark.skipif(BY_UPSTREAM, reason="0.5.13 is what parity means: its own column is checked above")
@pytest.mark.parametrize(("disabled", "with_aiter", "can_fuse"), MOE)
def test_parity_takes_the_rule_of_0_5_13(
    asked: Callable[..., Decision],
    aiter: Callable[[bool], None],
    server_args: Any,
    monkeypatch: pytest.MonkeyPatch,
    disabled: bool,
    with_aiter: bool,
    can_fuse: bool,
) -> None:
    asked(ALT, PARITY)
    aiter(with_aiter)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", disabled)
    assert streams_of(moe_model(can_fuse=can_fuse)).moe == [MOE[disabled, with_aiter, can_fuse][2]] * 2


def test_the_decision_says_what_will_not_happen(asked: Callable[..., Decision]) -> None:
    if BY_UPSTREAM:
        assert asked(ALT).reason == asked().reason == "upstream reads SGLANG_ALT_STREAM itself"
        return
    off = asked(GDN, QK)
    assert off.state is State.DISABLED and off.reason.startswith("off: set SGLANG_ALT_STREAM=1")
    on = asked(ALT, GDN, QK)
    assert on.state is State.PLANNED and "experts, GDN projections, QK norms" in on.reason
    assert (f"{GDN} has no effect" in on.reason) is (Version("0.5.10") > RELEASE)
    assert (f"{QK} replaces the fused QK norm" in on.reason) is FUSES


@pytest.mark.skipif(BY_UPSTREAM, reason="nothing of ours speaks there")
def test_a_process_says_it_once(asked: Callable[..., Decision], capsys: pytest.CaptureFixture[str]) -> None:
    asked(ALT, GDN, QK)
    moe_model(), moe_model()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[amd-sglang]")]
    expected = [GDN] if Version("0.5.10") > RELEASE else [QK] * FUSES
    assert [name for line in said for name in (GDN, QK) if name in line] == expected and len(said) == len(expected)


@pytest.mark.skipif(not FUSES, reason="nothing counts fused experts there")
@pytest.mark.parametrize(
    ("alt", "disabled", "with_aiter", "moe", "fused"),
    [
        (False, False, True, False, 1),
        (True, False, True, False, 1),
        (True, True, True, True, 0),
        (True, False, False, not BY_UPSTREAM, 0),
    ],
)
def test_the_vision_language_model_counts_fused_experts_as_before(
    asked: Callable[..., Decision],
    aiter: Callable[[bool], None],
    server_args: Any,
    monkeypatch: pytest.MonkeyPatch,
    alt: bool,
    disabled: bool,
    with_aiter: bool,
    moe: bool,
    fused: int,
) -> None:
    from sglang.srt.models.qwen3_5 import Qwen3_5MoeForConditionalGeneration

    asked(*[ALT] * alt)
    aiter(with_aiter)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", disabled)
    model = build(Qwen3_5MoeForConditionalGeneration, config=vision_language_config())
    assert streams_of(model.model).moe == [moe] * 2
    assert (model.num_fused_shared_experts, model.enable_shared_expert_fusion) == (fused, bool(fused))


def test_target_and_draft_have_streams_of_their_own(
    asked: Callable[..., Decision], server_args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.models.qwen3_5_mtp import Qwen3_5ForCausalLMMTP

    asked(ALT)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", True)
    config = text_config()
    config.layers_block_type = ["attention"]
    streams = [
        streams_of(moe_model()),
        streams_of(build(Qwen3_5ForCausalLMMTP, config=config).model),
        streams_of(moe_model()),
    ]
    assert [len(one.streams) for one in streams] == [1, 1, 1] and streams[1].moe == [True]
    assert len(set.union(*(one.streams for one in streams))) == 3


@pytest.mark.skipif(not PIPELINES, reason="Qwen3.5 has no pipeline ranks there")
@pytest.mark.parametrize("partition", ["1,1", "2,0"])
def test_layers_of_other_pipeline_ranks_are_left_alone(
    asked: Callable[..., Decision], server_args: Any, monkeypatch: pytest.MonkeyPatch, partition: str
) -> None:
    from sglang.srt.layers.utils import PPMissingLayer
    from sglang.srt.models import qwen3_5

    asked(ALT, GDN, QK)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", True)
    monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", partition)
    rank = SimpleNamespace(is_first_rank=False, is_last_rank=True, rank_in_group=1, world_size=2)
    monkeypatch.setattr(qwen3_5, "get_pp_group", lambda: rank)
    model = moe_model()
    own = int(partition[-1])
    missing = [layer for layer in model.layers if isinstance(layer, PPMissingLayer)]
    assert len(missing) == 2 - own and not any("alt_stream" in vars(layer) for layer in missing)
    assert streams_of(model).moe == [True] * own and len(streams_of(model).streams) == own


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The streams that are made."""
    streams: list[object] = []

    def make() -> object:
        streams.append(torch_streams.Stream())
        return streams[-1]

    monkeypatch.setattr(torch.cuda, "Stream", make)
    return streams


@pytest.mark.skipif(BY_UPSTREAM, reason="upstream makes it anyway")
@pytest.mark.parametrize("names", [(ALT,), (ALT, QK), ()])
def test_a_model_without_moe_layers(asked: Callable[..., Decision], made: list[object], names: tuple[str, ...]) -> None:
    from sglang.srt.models.qwen3_5 import Qwen3_5ForCausalLM

    asked(*names)
    found = streams_of(build(Qwen3_5ForCausalLM, config=text_config(moe=False)))
    assert found.moe == [] and found.qk == [QK in names] and len(made) == (QK in names)


@pytest.mark.skipif(BY_UPSTREAM, reason="upstream makes it anyway")
def test_experts_without_a_shared_one_have_nothing_to_overlap(
    asked: Callable[..., Decision], made: list[object]
) -> None:
    asked(ALT)
    assert streams_of(moe_model(shared=False)).moe == [False, False] and made == []


@pytest.mark.skipif(BY_UPSTREAM, reason="upstream does not look")
@pytest.mark.parametrize("parity", BOOLEANS)
def test_every_all_to_all_backend_keeps_the_experts_on_one_stream(
    asked: Callable[..., Decision],
    aiter: Callable[[bool], None],
    server_args: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parity: bool,
) -> None:
    from sglang.srt.layers.moe import utils

    asked(ALT, QK, *[PARITY] * parity)
    aiter(False)
    monkeypatch.setattr(server_args, "disable_shared_experts_fusion", True)
    assert streams_of(moe_model()).moe == [True, True]
    others = [backend for backend in utils.MoeA2ABackend if backend is not utils.MoeA2ABackend.NONE]
    others.append(SimpleNamespace(value="of-tomorrow", is_none=lambda: False))
    for backend in others:
        # Where only the patch asks: the layers are built as without one, whose libraries are not here.
        monkeypatch.setattr(utils, "get_moe_a2a_backend", lambda backend=backend: backend)
        found = streams_of(moe_model())
        assert found.moe == [False, False] and found.qk == [True]
        assert f"one stream with the all-to-all backend {backend.value}" in capsys.readouterr().err


def test_a_backend_that_sglang_does_not_know_is_its_own_error() -> None:
    from sglang.srt.layers.moe.utils import MoeA2ABackend

    with pytest.raises(ValueError, match="warp"):
        MoeA2ABackend("warp")


def test_every_forward_stays_upstreams_own(asked: Callable[..., Decision]) -> None:
    from sglang.srt.models import qwen2_moe, qwen3_5

    without = moe_model(can_fuse=False)
    asked(ALT, GDN, QK)
    model = moe_model(can_fuse=False)
    proofs = {module.__name__: Proof(module) for module in (qwen2_moe, qwen3_5)}
    variants = [variant for variant in qwen3_5_alt_stream.PATCH.variants if variant.targets]
    forwards = {i.slot for v in variants for i in v.images if not i.slot.qualname.endswith("__init__")}
    assert len(forwards) == 4
    if not BY_UPSTREAM:
        for slot in forwards:
            assert proofs[slot.module].foreign(slot, held(slot)) is None
    # An instance could hide its class's forward: none gains a name, and no hook stands before or behind one.
    for ours, plain in zip(model.modules(), without.modules(), strict=True):
        assert type(ours) is type(plain) and vars(ours).keys() == vars(plain).keys()
        assert not ours._forward_hooks and not ours._forward_pre_hooks


@pytest.mark.skipif(BY_UPSTREAM or Version("0.5.10") > RELEASE, reason="not all three forwards can be compared")
def test_no_forward_gains_a_python_frame(
    asked: Callable[..., Decision], aiter: Callable[[bool], None], server_args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.models import qwen2_moe, qwen3_5

    asked(ALT, GDN, QK)
    aiter(False)
    monkeypatch.setattr(server_args, "disable_piecewise_cuda_graph", True)
    for module in (qwen2_moe, qwen3_5):
        monkeypatch.setattr(module, "get_is_capture_mode", lambda: True)
    before = len(torch_streams.log)
    ours = measure(by_the_overlay())
    forks = [entry for entry in torch_streams.log[before:] if entry[0] == "enter"]
    assert len(forks) == 2 * len(ours) == 6 and all(one.calls > 10 for one in ours.values())
    assert ours == measure(by_upstream())


@pytest.mark.parametrize("part", ["norms", *["projections"] * (Version("0.5.10") <= RELEASE)])
def test_norms_and_projections_fork_without_a_race(
    asked: Callable[..., Decision], server_args: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from sglang.srt.models import qwen3_5

    asked(ALT, GDN, QK)
    monkeypatch.setattr(qwen3_5, "get_is_capture_mode", lambda: True)
    monkeypatch.setattr(server_args, "disable_piecewise_cuda_graph", True, raising=False)  # as sglang has it on ROCm
    layers = moe_model(can_fuse=False).layers
    holder: Any = layers[1] if part == "norms" else layers[0].linear_attn
    hidden_states, queries = (torch.randn(5, width).bfloat16() for width in (HIDDEN, 2 * HIDDEN))
    forwards: dict[str, Callable[[], Any]] = {
        "norms": lambda: holder._apply_qk_norm(queries[:, :HIDDEN], hidden_states[:, : HIDDEN // 2]),
        "projections": lambda: holder._forward_input_proj(hidden_states),
    }
    run, side = forwards[part], holder.alt_stream
    with torch.no_grad():
        forked = run()
        holder.alt_stream = None
        alone = run()
        assert all(torch.equal(one, other) for one, other in zip(forked, alone, strict=True))

        holder.alt_stream = side
        for norm in (layers[1].q_norm, layers[1].k_norm):
            norm._forward_method = norm.forward_native  # of operators, which the detector sees
        before = len(torch_streams.log)
        with RaceDetector() as detector:
            run()
        waits = [entry for entry in torch_streams.log[before:] if entry[0] == "wait_stream"]
    assert detector.races == [] and waits == [("wait_stream", side.id, 0), ("wait_stream", 0, side.id)]


@pytest.mark.parametrize("word", ["0", "false", "yes", "on", ""])
def test_only_what_sglang_takes_for_true_switches_it_on(word: str) -> None:
    made = decision(((ALT, word),))
    assert made.state is (State.CONTAINED if BY_UPSTREAM else State.DISABLED)


def test_what_was_asked_for_is_part_of_the_plans_digest() -> None:
    overlay = runtime.current()
    assert overlay is not None
    registry = Registry((fix_dual_stream_inplace.PATCH, qwen3_5_alt_stream.PATCH))
    environs = [{}, {ALT: "1"}, {ALT: "1", GDN: "1"}, {ALT: "1", QK: "1"}, {ALT: "1", PARITY: "1"}]
    plans = [make_plan(registry, installed_tree(), overlay.plan.platform, environ) for environ in environs]
    assert len({plan.digest for plan in plans}) == len(environs)
    assert os.environ.get(ALT) == "1"
