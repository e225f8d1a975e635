"""Races of two streams in the real forwards of one release, with the overlay's fix and without.

Not collected by name: `test_alt_streams.py` runs this file under the overlay, in the simulated ROCm, once per release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from overlay import runtime
from overlay.model import State
from overlay.simulate.torch_streams import Stream
from tests.patches.in_release import one_rank
from tests.patches.in_release.qwen3_5_models import HIDDEN, build, text_config
from tests.races import RaceDetector

RELEASE = Version(version("sglang"))
ID = "fix-dual-stream-inplace"
TOKENS = 3


#: Modules that took SGLANG_USE_AITER at import and decide by it who runs the experts, and who scales them.
AITER_FLAGS = ("layers.quantization.unquant", "layers.moe.topk", "models.qwen2_moe", "models.deepseek_v2")


@pytest.fixture(autouse=True)
def triton_experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shared experts of their own, and routed ones run by Triton: those are the ones that can write in place."""
    arguments = one_rank.start()
    if not arguments.disable_shared_experts_fusion:
        monkeypatch.setattr(arguments, "disable_shared_experts_fusion", True)
    for name in AITER_FLAGS:
        monkeypatch.setattr(import_module(f"sglang.srt.{name}"), "_use_aiter", False, raising=False)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Case(NamedTuple):
    """One kind of MoE block: how it is made with a stream or without, and whether upstream's experts write in place."""

    make: Callable[[object], Any]
    in_place: bool


def qwen(stream: object) -> Any:
    from sglang.srt.models.qwen2_moe import Qwen2MoeSparseMoeBlock

    return build(Qwen2MoeSparseMoeBlock, config=text_config(), layer_id=0, alt_stream=stream)


def deepseek(stream: object) -> Any:
    from sglang.srt.models.deepseek_v2 import DeepseekV2MoE

    config = SimpleNamespace(
        architectures=["DeepseekV3ForCausalLM"],
        hidden_size=HIDDEN,
        hidden_act="silu",
        vocab_size=64,
        moe_intermediate_size=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        n_group=2,
        topk_group=1,
        quantization_config=None,
    )
    return build(DeepseekV2MoE, config=config, layer_id=1, alt_stream=stream)


CASES = {"qwen": Case(qwen, Version("0.5.14") > RELEASE), "deepseek": Case(deepseek, True)}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def races(block: Any, hidden_states: Tensor) -> tuple[list[str], Tensor]:
    """What the detector finds in the two-stream forward, and the sum of both kinds of experts."""
    with RaceDetector() as detector:
        result = block.forward_normal_dual_stream(hidden_states.clone())
    total = result[0] + result[1] if isinstance(result, tuple) else result
    return [str(race) for race in detector.races], total


def test_a_block_with_a_stream_has_no_race(case: Case) -> None:
    block = case.make(Stream())
    assert not block.experts.moe_runner_config.inplace
    assert races(block, torch.randn(TOKENS, HIDDEN).bfloat16())[0] == []


def test_the_same_block_in_place_has_one(case: Case) -> None:
    """The negative control: what the patch prevents is there, and the detector sees it."""
    block = case.make(Stream())
    block.experts.moe_runner_config.inplace = True
    (race,) = races(block, torch.randn(TOKENS, HIDDEN).bfloat16())[0]
    assert "inplace_fused_experts.default writes" in race and " reads on stream" in race


def test_without_the_patch_it_is_there_where_the_plan_says_so(case: Case) -> None:
    overlay = runtime.current()
    assert overlay is not None and overlay.state(ID)[0] is State.APPLIED
    (decision,) = (d for d in overlay.plan.decisions if d.patch.id == ID)
    overlay.ledger.uninstall(ID)
    try:
        block = case.make(Stream())
    finally:
        overlay.ledger.install(ID, decision.targets)
    assert block.experts.moe_runner_config.inplace is case.in_place
    assert len(races(block, torch.randn(TOKENS, HIDDEN).bfloat16())[0]) == case.in_place


def test_a_block_without_a_stream_is_left_alone(case: Case) -> None:
    assert case.make(None).experts.moe_runner_config.inplace is case.in_place


def test_the_answer_is_that_of_one_stream(case: Case) -> None:
    block = case.make(Stream())
    hidden_states = torch.randn(TOKENS, HIDDEN).bfloat16()
    _, total = races(block, hidden_states)
    if hasattr(block, "forward_normal"):
        alone = block.forward_normal(hidden_states.clone())
    else:
        alone = block._forward_router_experts(hidden_states.clone()) + block._forward_shared_experts(hidden_states)
    assert torch.equal(total, alone)
    block.experts.moe_runner_config.inplace = True
    if hasattr(block, "forward_normal"):
        assert torch.equal(block.forward_normal(hidden_states.clone()), alone)
    assert bool(alone.isfinite().all()) and bool(alone.abs().max() > 0)
