"""What `fix-mhc-env-read` and `fix-mhc-fn-transpose` do to the real mHC boundary of one release, and what the release
does without them.

Not collected by name: `test_deepseek_v4_fixes.py` runs this file under the overlay, in the simulated gfx950. The
decoder layers are the release's `forward`; attention, MoE and norms are one line of PyTorch each.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patches import fix_mhc_fn_transpose
from tests.patches.in_release import mhc_placeholders as aiter
from tests.patches.in_release.rounds import WITH_AND_WITHOUT, in_force

IDS = ("fix-mhc-env-read", "fix-mhc-fn-transpose")
TOKENS, STREAMS, HIDDEN, LAYERS = 3, 4, 64, 3
MIXES = 2 * STREAMS + STREAMS * STREAMS


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    """The module whose class has the decoder layer's `forward` on ROCm."""
    importlib.import_module("sglang.srt.models.deepseek_v4")
    stage = "sglang.srt.models.deepseek_v4_platform_stage"
    return importlib.import_module(stage if importlib.util.find_spec(stage) else "sglang.srt.models.deepseek_v4")


@pytest.fixture(scope="module", params=WITH_AND_WITHOUT)
def patched(request: pytest.FixtureRequest, layers: ModuleType) -> bool:
    return in_force(request, *IDS)


@pytest.fixture
def mhc(patched: bool, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The release's module, as in a fresh process whose server has been told what it runs on (arg_groups/model_hook.py
    switches TileLang's kernels off on ROCm)."""
    from sglang.srt.models.deepseek_common.amd import deepseek_v4_fused_mhc as module

    monkeypatch.setattr(module, "_TRITON_MHC_POST_PRE_OPS", None)
    monkeypatch.setattr(module, "_TRITON_MHC_POST_PRE_RUNTIME_DISABLED", False)
    monkeypatch.setattr(module, "_AITER_MHC_FUSED_POST_PRE_RUNTIME_DISABLED", False)
    monkeypatch.setattr(module, "_FUSED_HC_POST_PRE_CACHE", {})
    for name in ("PRE", "POST"):
        monkeypatch.setenv(f"SGLANG_OPT_USE_TILELANG_MHC_{name}", "0")
    found: ModuleType = module
    return found


def test_the_environment_is_read_once(mhc: ModuleType, patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked as a boundary asks, with a batch without tokens. Here the patch may have been asked before: then never."""
    names: list[str] = []

    def read(name: str, default: str = "false") -> bool:
        names.append(name)
        return os.environ[name] == "1"

    monkeypatch.setattr(mhc, "get_bool_env_var", read)
    nothing = torch.empty(0, HIDDEN)
    for _ in range(50):
        assert mhc.try_aiter_fused_mhc_post_pre(nothing, *[None] * 11, None) is None
    assert set(names) <= {"SGLANG_USE_AITER"}
    assert len(names) <= 1 if patched else len(names) == 50
    assert mhc._is_aiter_gfx95_mhc_available() is True


class Norm:
    weight = torch.ones(HIDDEN)
    variance_epsilon = 1e-6

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (HIDDEN,), eps=self.variance_epsilon)


class Attention:
    def maybe_use_decode_attn_tp(self, _batch: object) -> nullcontext[None]:
        return nullcontext()

    def __call__(self, x: Tensor, **_: object) -> Tensor:
        return torch.tanh(x)


class Layer(SimpleNamespace):
    """What the release's `forward` asks of its layer."""

    def __init__(self, forward: Callable[..., Any], fused: bool) -> None:
        super().__init__(
            use_fused_mhc_post_pre=fused,
            hc_mult=STREAMS,
            hc_eps=1e-6,
            hc_sinkhorn_iters=20,
            rms_norm_eps=1e-6,
            input_layernorm=Norm(),
            post_attention_layernorm=Norm(),
            _input_layernorm_weight_bf16=None,
            _post_attention_layernorm_weight_bf16=None,
            self_attn=Attention(),
            **{
                f"hc_{side}_{name}": value
                for side in ("attn", "ffn")
                for name, value in (
                    ("fn", torch.randn(MIXES, STREAMS * HIDDEN) * 0.05),
                    ("scale", torch.rand(3)),
                    ("base", torch.randn(MIXES)),
                )
            },
        )
        self._forward = forward

    def hc_pre(self, x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, **_: object) -> tuple[Any, ...]:
        return (*aiter.pre(x, fn, scale, base, 1e-6, 1e-6, 2.0, 20), False)

    def hc_post(self, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        return aiter.post(x, residual, post, comb)

    def _input_norm(self, x: Tensor, **_: object) -> tuple[Tensor, None]:
        return self.input_layernorm(x), None

    def _run_moe_ffn_dp_sync(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return torch.relu(x)

    def __call__(self, x: Tensor, residual: Any, post: Any, comb: Any) -> Any:
        return self._forward(self, None, x, None, None, None, residual, post, comb)


@pytest.fixture
def model(layers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Tensor]:
    """Runs the release's layers, with the boundaries fused or not, and closes the last one as the model does."""
    owner = getattr(layers, "NonCudaDecoderMixin", None) or layers.DeepseekV4DecoderLayer
    if hasattr(layers, "_fused_rmsnorm_fp8_quant"):
        monkeypatch.setattr(layers, "_fused_rmsnorm_fp8_quant", lambda x, *_: (None, Norm()(x)))

    def run(fused: bool) -> Tensor:
        torch.manual_seed(0)
        stack = [Layer(owner.forward, fused) for _ in range(LAYERS)]
        x = torch.randn(TOKENS, STREAMS, HIDDEN, dtype=torch.bfloat16)
        residual: Any = None
        post: Any = None
        comb: Any = None
        for layer in stack:
            x, residual, post, comb = layer(x, residual, post, comb)
        return stack[-1].hc_post(x, residual, post, comb) if fused else x

    return run


def test_every_boundary_is_fused(
    mhc: ModuleType, patched: bool, model: Callable[[bool], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack has two boundaries a layer, less the one before the first layer. The first attention boundary is that of
    layer 1: without the patch it is the last that anything is tried at."""
    kernel = aiter.provide_kernel(monkeypatch)
    fused = model(True)
    assert torch.equal(fused, model(False)), "fused or not, the numbers are the same"
    assert kernel.calls == (2 * LAYERS - 1 if patched else 1)
    assert mhc._TRITON_MHC_POST_PRE_RUNTIME_DISABLED is not patched


class ReachedTileLang(Exception):
    """Raised where TileLang would compile for gfx1250."""


def test_on_gfx1250_nothing_falls_to_tilelang(
    mhc: ModuleType, patched: bool, model: Callable[[bool], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tilelang(*_: object, **__: object) -> None:
        raise ReachedTileLang

    models = importlib.import_module("sglang.srt.models.deepseek_v4")
    getter = "get_mhc_ops" if hasattr(models, "get_mhc_ops") else "_get_mhc_ops"
    monkeypatch.setattr(models, getter, lambda: SimpleNamespace(mhc_fused_post_pre=tilelang))
    monkeypatch.setattr(mhc, "_is_gfx1250_supported", True)
    kernel = aiter.provide_kernel(monkeypatch)
    if not patched:
        with pytest.raises(ReachedTileLang):
            model(True)
        return
    assert torch.equal(model(True), model(False))
    assert kernel.calls == 2 * LAYERS - 1


def test_whatever_the_caller_says_the_kernel_gets_what_it_reads(
    mhc: ModuleType, patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch = mhc.try_mhc_fused_post_pre_boundary
    if not patched:
        dispatch = fix_mhc_fn_transpose.make_boundary(dispatch)
    kernel = aiter.provide_kernel(monkeypatch)
    fn = torch.randn(MIXES, STREAMS * HIDDEN)
    state = (
        torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16),
        torch.randn(TOKENS, STREAMS, HIDDEN, dtype=torch.bfloat16),
        torch.rand(TOKENS, STREAMS),
        torch.rand(TOKENS, STREAMS, STREAMS),
    )
    constants = (torch.ones(3), torch.zeros(MIXES), STREAMS, 1e-6, 1e-6, 2.0, 20, torch.ones(HIDDEN), 1e-6)
    outputs = []
    for matrix in (fn, fn.T):
        for said in (True, False):
            residual, layer_input, *_ = dispatch(*state, matrix, *constants, said, True)
            outputs.append((residual.clone(), layer_input.clone()))
    assert kernel.calls == 4
    assert all(torch.equal(got, want) for pair in outputs for got, want in zip(pair, outputs[0], strict=True))
