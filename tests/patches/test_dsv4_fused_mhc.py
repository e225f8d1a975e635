"""`dsv4-fused-mhc` on the real decoder layer, and its decision for every release."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.render import explanation
from overlay.source import DirectoryTree
from patches import dsv4_fused_mhc
from patches.dsv4_fused_mhc import PATCH
from tests.releases import run_simulated
from tests.unit.engine_support import RELEASES

CHECKS = Path(__file__).parent / "in_release" / "check_dsv4_fused_mhc.py"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS))
BACKEND = "AMD_SGLANG_DSV4_MHC_BACKEND"
SWITCH = "SGLANG_OPT_USE_TRITON_FUSED_MHC"


@pytest.mark.engine
def test_every_check_passes() -> None:
    done = run_simulated("0.5.13", *PYTEST)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


#: As of #3190: the kernel, without the Sinkhorn that DeepSeek-V4 is trained with.
_OLD_AITER = """
import sys
from types import SimpleNamespace
sys.modules["aiter.ops.triton.fusions.mhc"] = SimpleNamespace(mhc_post_pre=lambda layer_input, residual_in: None)
sys.modules["aiter.ops.triton._triton_kernels.fusions.mhc"] = SimpleNamespace(_mhc_post_pre_reduce_apply_kernel=None)
"""

_REPORT = """
from tests.patches.in_release.tilelang_placeholder import provide_tilelang
provide_tilelang()
from sglang.srt.models import deepseek_v4
from overlay import runtime
from overlay.install import held
from overlay.model import Slot
from overlay.preimage import Proof
state, reason = runtime.current().state("dsv4-fused-mhc")
slots = [Slot(deepseek_v4.__name__, f"DeepseekV4DecoderLayer.{name}") for name in ("hc_pre", "hc_post")]
untouched = all(Proof(deepseek_v4).foreign(slot, held(slot)) is None for slot in slots)
print("REPORT", state.value, untouched, reason)
"""


@pytest.mark.engine
def test_an_aiter_that_is_not_the_one_we_know_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(_OLD_AITER + _REPORT)
    done = run_simulated("0.5.13", str(script), **{BACKEND: "aiter"})
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")] or [done.stderr]
    assert line.startswith("REPORT failed True UnsuitableAiterError: "), line
    assert "takes other parameters" in line and "Use auto" in line


def decide(release: str, arch: str = "gfx950", **environ: str) -> Decision:
    plan = make_plan(Registry((PATCH,)), DirectoryTree(RELEASES[release]), Platform("rocm", arch), environ)
    return plan.decisions[0]


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_is_told_what_it_has(release: str) -> None:
    decision, version = decide(release), Version(release)
    if version < Version("0.5.12"):
        assert decision.state is State.UNSUPPORTED_VERSION
    elif version < Version("0.5.13"):
        assert decision.state is State.UNSUPPORTED_VERSION
        assert decision.reason.startswith("this release has no ROCm DeepSeek-V4 backend")
        assert "FlashMLA" in decision.reason
    elif version < Version("0.5.19"):
        assert decision.state is State.PLANNED
        assert "#25976" in decision.reason and "layernorm" in decision.reason
    else:
        assert decision.state is State.CONTAINED
        assert "#32577" in decision.reason
    assert "fingerprint" not in decision.reason


@pytest.mark.skipif("0.5.13" not in RELEASES, reason="0.5.13 is not here")
class TestThePlan:
    @pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
    def test_is_made_for_every_gpu(self, arch: str) -> None:
        assert decide("0.5.13", arch).state is State.PLANNED

    @pytest.mark.parametrize("value", ["0", "false", "No"])
    def test_respects_upstreams_own_switch(self, value: str) -> None:
        decision = decide("0.5.13", **{SWITCH: value})
        assert decision.state is State.CONTAINED
        assert SWITCH in decision.reason

    @pytest.mark.parametrize("value", ["", "1", "true"])
    def test_is_made_where_that_switch_is_on(self, value: str) -> None:
        assert decide("0.5.13", **{SWITCH: value}).state is State.PLANNED


def test_the_explanation_tells_the_story() -> None:
    text = " ".join(explanation(PATCH, "").split())
    for word in ("#26383", "#25976", "post_attention_layernorm", "cannot be reached", BACKEND, "0.5.12 cannot run"):
        assert word in text, word


def test_off_calls_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the release calls it. What is made is another function, which can carry the patch's mark."""
    monkeypatch.setenv(BACKEND, "off")
    calls: list[tuple[object, ...]] = []

    def original(*args: object, **kwargs: object) -> str:
        calls.append((*args, kwargs))
        return "original"

    post: Any = dsv4_fused_mhc.make_hc_post(original)
    pre: Any = dsv4_fused_mhc.make_hc_pre(original)
    assert post is not original and pre is not original
    assert post("self", "x", "residual", "post", "comb") == "original"
    assert pre("self", "x", "fn", "scale", "base", norm="norm", forward_batch="batch") == "original"
    assert calls == [
        ("self", "x", "residual", "post", "comb", {}),
        ("self", "x", "fn", "scale", "base", {"norm": "norm", "forward_batch": "batch"}),
    ]


class Layer:
    """Stands for the release's class: no release can be imported here, and torch.compile is off where one can."""

    hc_attn_fn = torch.zeros(2)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("sglang.srt.models.deepseek_v4")
    vars(stand_in)["DeepseekV4DecoderLayer"] = Layer
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delenv(BACKEND, raising=False)


@pytest.mark.usefixtures("model")
class TestTorchCompile:
    """It traces the originals: neither a launch of ours nor the look for a pair is in its graph, or breaks it."""

    def test_hc_pre(self) -> None:
        def original(self: object, x: Tensor, hc_fn: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, bool]:
            return x * 2, x * 3, x, False

        eager: Any = dsv4_fused_mhc.make_hc_pre(original)
        traced: Any = torch.compile(eager, backend="eager", fullgraph=True)
        fusion, layer, one = dsv4_fused_mhc.fusion_of("auto"), Layer(), torch.ones(3)
        posts = [method(layer, one, Layer.hc_attn_fn)[1] for method in (eager, traced)]
        assert [fusion.expects(post) for post in posts] == [True, False]

    def test_hc_post(self) -> None:
        def original(self: object, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
            return x + residual

        eager: Any = dsv4_fused_mhc.make_hc_post(original)
        traced: Any = torch.compile(eager, backend="eager", fullgraph=True)
        one = torch.ones(3)
        dsv4_fused_mhc.fusion_of("auto").expect(one)
        with pytest.raises(AttributeError, match="hc_ffn_fn"):  # the fused step asks the layer for its weights
            eager(None, one, one, one, one)
        assert torch.equal(traced(None, one, one, one, one), one * 2)
