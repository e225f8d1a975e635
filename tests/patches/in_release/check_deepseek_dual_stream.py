"""What `deepseek-dual-stream` and `fix-dual-stream-scaling` do to the real DeepSeek model of one release.

Not collected by name: `test_deepseek_dual_stream.py` runs this file under the overlay, in the simulated ROCm with
aiter, once per release. Releases that contain #24005 are held to the same expectations.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
import wrapt
from packaging.version import Version
from torch import Tensor

from overlay import runtime
from overlay.install import held
from overlay.model import State
from overlay.preimage import Proof
from overlay.simulate import torch_streams
from patches import deepseek_dual_stream
from patches.deepseek_dual_stream import CAPTURE_ONLY, MLA
from patches.fix_dual_stream_scaling import UnknownForwardError, correct_scaling
from tests.patches.in_release.deepseek import Release, config, tokens

RELEASE = Version(importlib.metadata.version("sglang"))
APPLIED = Version("0.5.12") > RELEASE
SCALES_TWICE = Version("0.5.13") > RELEASE
VARIABLE = "SGLANG_ROCM_USE_MULTI_STREAM"
DUAL = "forward_normal_dual_stream"

only_where_applied = pytest.mark.skipif(not APPLIED, reason="upstream's own")
only_where_scaled_twice = pytest.mark.skipif(not SCALES_TWICE, reason="upstream scales once")


@pytest.fixture(scope="session")
def release() -> Release:
    made = Release()
    overlay = runtime.current()
    assert overlay is not None
    for patch, applied in (
        ("fix-dual-stream-inplace", True),
        ("fix-dual-stream-scaling", SCALES_TWICE),
        ("deepseek-dual-stream", APPLIED),
    ):
        assert overlay.state(patch)[0] is (State.APPLIED if applied else State.CONTAINED), overlay.state(patch)
    return made


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


@pytest.fixture
def capturing(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.model_executor import cuda_graph_runner

    monkeypatch.setattr(cuda_graph_runner, "is_capture_mode", True)


def given(model: Any, **switches: bool) -> Any:
    """The model as the patch leaves it with other switches; it must have been built without the variable."""
    with pytest.MonkeyPatch.context() as patching:
        gates = {"mla": MLA, "capture_only": CAPTURE_ONLY}
        for name, value in switches.items():
            patching.setenv(gates[name].name, str(int(value)))
        patching.setenv(VARIABLE, "1")
        deepseek_dual_stream.make_init(None)(lambda: None, model, (), {})
    return model


def without_streams(release: Release, monkeypatch: pytest.MonkeyPatch, **changed: object) -> Any:
    monkeypatch.delenv(VARIABLE)
    return release.model(**changed)


def holders(model: Any) -> dict[str, Any]:
    """Who holds a stream: name -> stream, for all that have one."""
    found = {"model": model.alt_stream}
    for index, layer in enumerate(model.layers):
        found[f"{index}.attention"] = getattr(layer, "self_attn", model).alt_stream if hasattr(layer, "mlp") else None
        found[f"{index}.mlp"] = getattr(getattr(layer, "mlp", None), "alt_stream", None)
    return {name: stream for name, stream in found.items() if stream is not None}


# T4: who holds the stream


@pytest.mark.parametrize("value", [None, "0", "no", "bogus"])
@pytest.mark.filterwarnings("ignore:Invalid value for SGLANG_ROCM_USE_MULTI_STREAM")
def test_off(release: Release, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(VARIABLE)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    model = release.model()
    block = model.layers[1].mlp
    assert holders(model) == {}
    assert block.experts.moe_runner_config.inplace is True
    assert DUAL not in vars(block)


@pytest.mark.parametrize("value", ["1", "yes", "True"])
@pytest.mark.parametrize("aiter", [True, False])
def test_on(release: Release, monkeypatch: pytest.MonkeyPatch, value: str, aiter: bool) -> None:
    monkeypatch.setenv(VARIABLE, value)
    release.set_aiter(monkeypatch, aiter)
    model = release.model()
    block = model.layers[1].mlp
    assert set(holders(model)) == {"model", "0.attention", "1.attention", "1.mlp"}
    assert len(set(holders(model).values())) == 1
    assert block.experts.moe_runner_config.inplace is False
    assert (DUAL in vars(block)) is (SCALES_TWICE and aiter)


def test_two_models_do_not_share(release: Release) -> None:
    first, second = release.model(), release.model()
    assert first.alt_stream != second.alt_stream
    assert set(holders(first).values()) == {first.alt_stream}
    assert set(holders(second).values()) == {second.alt_stream}


def test_no_moe_layer(release: Release) -> None:
    assert set(holders(release.model(first_k_dense_replace=2))) == {"model", "0.attention", "1.attention"}


def test_pipeline_rank_without_layers(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    last = SimpleNamespace(is_first_rank=False, is_last_rank=True, rank_in_group=1, world_size=2)
    monkeypatch.setattr(release.module, "get_pp_group", lambda: last)
    monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "2,0")
    model = release.model()
    assert model.start_layer == model.end_layer == 2
    assert set(holders(model)) == (set() if APPLIED else {"model"})


def test_pipeline_rank_with_one_layer(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    last = SimpleNamespace(is_first_rank=False, is_last_rank=True, rank_in_group=1, world_size=2)
    monkeypatch.setattr(release.module, "get_pp_group", lambda: last)
    assert set(holders(release.model())) == {"model", "1.attention", "1.mlp"}


def test_an_all_to_all_backend_that_nobody_knows(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.moe import utils

    class Unknown:
        def __getattr__(self, name: str) -> Any:
            return lambda: False

    monkeypatch.setattr(utils, "MOE_A2A_BACKEND", Unknown())
    with pytest.raises(NotImplementedError, match="Unsupported a2a backend"):
        release.model()


def test_the_constructors_own_error_passes(release: Release) -> None:
    with pytest.raises(ValueError, match="gelu"):
        release.model(hidden_act="gelu")


@only_where_applied
def test_fused_shared_experts_leave_nothing_to_overlap(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release.args, "disable_shared_experts_fusion", False)
    model = release.model()
    assert model.layers[1].mlp.num_fused_shared_experts == 1
    assert set(holders(model)) == {"model", "0.attention", "1.attention"}
    assert model.layers[1].mlp.experts.moe_runner_config.inplace is True


def test_the_draft_model_is_left_alone(release: Release) -> None:
    draft = release.draft()
    assert draft.alt_stream is None
    assert draft.decoder.self_attn.alt_stream is None
    assert draft.decoder.mlp.alt_stream is None


@only_where_applied
def test_a_stream_that_upstream_made_is_kept(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLANG_NPU_USE_MULTI_STREAM is read on every platform."""
    made: list[torch_streams.Stream] = []

    def stream(*_: object) -> torch_streams.Stream:
        made.append(torch_streams.Stream())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setenv("SGLANG_NPU_USE_MULTI_STREAM", "1")
    model = release.model()
    assert len(made) == 1
    assert set(holders(model).values()) == {model.alt_stream}
    block = model.layers[1].mlp
    assert block.experts.moe_runner_config.inplace is False
    assert DUAL in vars(block)


@only_where_applied
@pytest.mark.parametrize("mla", [True, False])
def test_attention_has_its_own_switch(release: Release, monkeypatch: pytest.MonkeyPatch, mla: bool) -> None:
    model = without_streams(release, monkeypatch)
    indexer: Any = torch.nn.Module()
    indexer.alt_stream = None
    model.layers[1].self_attn.indexer = indexer
    attention = {"0.attention", "1.attention"} if mla else set()
    assert set(holders(given(model, mla=mla))) == {"model", "1.mlp", *attention}
    assert indexer.alt_stream is None


@only_where_applied
def test_without_attention_and_experts_there_is_no_stream(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holders(given(without_streams(release, monkeypatch, first_k_dense_replace=2), mla=False)) == {}


@pytest.mark.parametrize("value", ["1", "0"])
def test_the_variable_is_sglangs(release: Release, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from sglang.srt.environ import envs

    monkeypatch.setenv(VARIABLE, value)
    variable = envs.SGLANG_ROCM_USE_MULTI_STREAM
    assert variable.get() is (value == "1")
    with variable.override(value == "0"):
        assert variable.get() is (value == "0")
        assert os.environ[VARIABLE] == str(value == "0")
    assert os.environ[VARIABLE] == value
    monkeypatch.delenv(VARIABLE)
    assert variable.get() is False and not variable.is_set()
    with pytest.raises(RuntimeError, match=r"\.get\(\)"):
        bool(variable)


# T7: two streams compute what one computes


def shipped(block: Any, x: Tensor) -> Tensor:
    result: Tensor = getattr(type(block), DUAL)(block, x)
    return result


@pytest.mark.parametrize("count", [1, 5, 32])
def test_two_streams_compute_what_one_computes(release: Release, count: int) -> None:
    block = release.block()
    x = tokens(count)
    normal = block.forward_normal(x.clone())
    assert torch.equal(block.forward_normal_dual_stream(x.clone()), normal)
    # The negative control: what upstream shipped.
    assert torch.equal(shipped(block, x.clone()), normal) is not SCALES_TWICE
    assert normal.abs().max() > 1


def test_capture_takes_the_two_streams(release: Release, capturing: None) -> None:
    block = release.block()
    x = tokens()
    begin = len(torch_streams.log)
    result = block(x.clone())
    waits = [(ours, other) for what, ours, other in torch_streams.log[begin:] if what == "wait_stream"]
    assert waits == [(block.alt_stream.id, 0), (0, block.alt_stream.id)]
    assert torch.equal(result, block.forward_normal(x.clone()))


def test_eager_batches_take_one(release: Release) -> None:
    block = release.block()
    begin = len(torch_streams.log)
    block(tokens())
    assert torch_streams.log[begin:] == []


def test_the_corrected_forward_is_upstreams_code(release: Release) -> None:
    """No frame is added: the same instructions under the same globals, reading another name."""
    block = release.block()
    ours, theirs = getattr(block, DUAL).__func__, getattr(type(block), DUAL)
    assert ours.__code__.co_code == theirs.__code__.co_code
    assert ours.__globals__ is theirs.__globals__
    assert ours.__defaults__ == theirs.__defaults__
    assert type(block).forward is release.module.DeepseekV2MoE.forward
    assert not hasattr(release.module, "True")


@only_where_scaled_twice
def test_without_aiter_the_forward_scales(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    release.set_aiter(monkeypatch, False)
    block = release.block()
    x = tokens()
    assert torch.equal(block.forward_normal_dual_stream(x.clone()), block.forward_normal(x.clone()))
    assert DUAL not in vars(block)


@pytest.mark.skipif(SCALES_TWICE, reason="since 0.5.13")
def test_a_forward_that_knows_of_aiter_is_left_alone(release: Release) -> None:
    block = release.block()
    correct_scaling(block)
    assert DUAL not in vars(block)


def test_routing_without_a_bias_leaves_the_scaling_to_the_forward(release: Release) -> None:
    """DeepSeek-V2: aiter's grouped top-k has no scaling factor."""
    block = release.model(topk_method="group_limited_greedy", scoring_func="softmax").layers[1].mlp
    assert block.alt_stream is not None
    assert DUAL not in vars(block)


@pytest.mark.skipif(Version("0.5.12") > RELEASE, reason="DeepSeek-V4 is new in 0.5.12")
@pytest.mark.parametrize("hashed", [False, True])
def test_deepseek_v4_is_left_alone(release: Release, hashed: bool) -> None:
    stream = torch_streams.Stream()
    changed = {"scoring_func": "sqrtsoftplus", "num_hash_layers": 2 if hashed else 0}
    block = release.module.DeepseekV2MoE(config(**changed), 1, alt_stream=stream, is_deepseek_v4=True)
    assert (type(block.topk).__name__ == "HashTopK") is hashed
    correct_scaling(block)
    assert DUAL not in vars(block)


# T8: code of another shape


def altered(release: Release, forward: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    block = without_streams(release, monkeypatch).layers[1].mlp
    block.__class__ = type("Altered", (type(block),), {DUAL: forward})
    return block


@only_where_scaled_twice
@pytest.mark.parametrize("loads", [0, 1, 2])
def test_the_condition_is_read_once_or_nothing_is_done(
    release: Release, monkeypatch: pytest.MonkeyPatch, loads: int
) -> None:
    source = f"def {DUAL}(self, hidden_states): return {['_is_cuda'] * loads!r}".replace("'", "")
    namespace: dict[str, Any] = {"_is_cuda": False}
    exec(source, namespace)
    block = altered(release, namespace[DUAL], monkeypatch)
    if loads == 1:
        correct_scaling(block)
        assert block.forward_normal_dual_stream(None) == [True]
        return
    with pytest.raises(UnknownForwardError, match=rf"Altered\.{DUAL} \(layer 1\) reads _is_cuda {loads} times, not"):
        correct_scaling(block)
    assert DUAL not in vars(block)
    assert block.alt_stream is None


@only_where_scaled_twice
def test_what_is_not_a_function_is_refused(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = wrapt.FunctionWrapper(getattr(release.module.DeepseekV2MoE, DUAL), lambda w, _i, a, k: w(*a, **k))
    block = altered(release, wrapper, monkeypatch)
    with pytest.raises(UnknownForwardError, match=r"is a \w*Wrapper, not a function"):
        correct_scaling(block)


@only_where_applied
def test_a_block_that_is_refused_gets_no_stream(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    model = without_streams(release, monkeypatch)
    block = model.layers[1].mlp
    block.__class__ = type("Altered", (type(block),), {DUAL: lambda self, hidden_states: None})
    with pytest.raises(UnknownForwardError, match="SGLANG_ROCM_USE_MULTI_STREAM"):
        given(model)
    assert holders(model) == {}


# forward_deepep outside graph capture


@only_where_applied
@pytest.mark.parametrize("capture_only", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_deepep_outside_capture(
    release: Release, monkeypatch: pytest.MonkeyPatch, capture_only: bool, captured: bool
) -> None:
    from sglang.srt.model_executor import cuda_graph_runner

    model = given(without_streams(release, monkeypatch), capture_only=capture_only)
    block = release.block(model)
    stream = model.alt_stream
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)  # of CPU tensors there is none
    monkeypatch.setattr(release.module.ExpertLocationDispatchInfo, "init_new", lambda **_: None)
    batch = SimpleNamespace(num_token_non_padded=None, nsa_cp_metadata=None, attn_cp_metadata=None)
    results = []
    for mode in (captured, not captured, captured):
        monkeypatch.setattr(cuda_graph_runner, "is_capture_mode", mode)
        begin = len(torch_streams.log)
        results.append(block.forward_deepep(tokens(), batch))
        forks = [what for what, ours, _ in torch_streams.log[begin:] if what == "enter" and ours == stream.id]
        assert len(forks) == (1 if mode or not capture_only else 0)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# taking it out


@only_where_applied
def test_uninstall_gives_everything_back(release: Release) -> None:
    """Last: it takes the patches out."""
    from sglang.srt import environ

    overlay = runtime.current()
    assert overlay is not None
    for patch in ("deepseek-dual-stream", "fix-dual-stream-scaling"):
        overlay.uninstall(patch)
        decision = next(d for d in overlay.plan.decisions if d.patch.id == patch)
        for report in decision.slots:
            proof = Proof(sys.modules[report.slot.module])
            assert proof.objection(report.slot, held(report.slot), report.observed) is None
    assert not hasattr(environ.Envs, VARIABLE)
    assert type(release.module.DeepseekV2Model.__init__) is FunctionType
    assert holders(release.model()) == {}
