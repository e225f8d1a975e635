"""What `fix-vllm-norm-signature` does to the real `RMSNorm` and `GemmaRMSNorm` of one release, with aiter off.

Not collected by name: `test_fix_vllm_norm_signature.py` runs this file in the simulated ROCm, once per release, without
the other patches of the norms. No vLLM is installed there, so the process's own plan leaves the norms alone; vLLM is a
fake with the real one's signatures, and the patch is planned and applied here, after the defect has been seen. With it
goes `fix-deepstack-residual`, which fills a method that this one reads.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import runtime
from overlay.install import MARK
from overlay.model import State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import installed_tree
from patches import fix_deepstack_residual, fix_vllm_norm_signature
from tests.patches.in_release import vllm_placeholder

ID = fix_vllm_norm_signature.PATCH.id
DEEPSTACK = fix_deepstack_residual.PATCH.id
N = 256
PLATFORM = Platform("rocm", "gfx942", vllm="0.9.2", simulated=True)
CLASSES = ["RMSNorm", "GemmaRMSNorm"]


def norm_of(layernorm: Any, name: str, dtype: torch.dtype) -> Any:
    """A layer with a weight that 16 bits hold exactly, with and without 1 added."""
    norm = getattr(layernorm, name)(N, eps=1e-6).to(dtype)
    weight = torch.randint(-32, 33, (N,)).to(dtype) / 64
    if name == "GemmaRMSNorm":
        getattr(norm.weight, "weight_loader", lambda param, loaded: param.data.copy_(loaded))(norm.weight, weight)
    else:
        norm.weight.data.copy_(1 + weight)
    return norm


def calls_vllm(norm: Any) -> bool:
    """Before 0.5.10 GemmaRMSNorm has no `forward_hip` of its own and runs unfused."""
    return "forward_hip" in vars(type(norm))


@pytest.fixture(scope="session")
def layernorm() -> Any:
    """The release's module, imported over the fake vLLM and seen to fail."""
    vllm_placeholder.install_vllm()
    from sglang.srt.layers import layernorm as module

    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state(ID)[0] is State.CONTAINED, overlay.state(ID)
    assert module.fused_add_rms_norm is vllm_placeholder.fused_add_rms_norm
    for name in CLASSES:
        raises_type_error(norm_of(module, name, torch.float32))
    return module


def raises_type_error(norm: Any) -> None:
    norm(torch.randn(2, N))
    if calls_vllm(norm):
        with pytest.raises(TypeError, match="takes 4 positional arguments but 6 were given"):
            norm(torch.randn(2, N), torch.randn(2, N))


@pytest.fixture(scope="session")
def overlay(layernorm: Any) -> runtime.Runtime:
    environ = {"SGLANG_USE_AITER": "0"}
    patches = Registry((fix_vllm_norm_signature.PATCH, fix_deepstack_residual.PATCH))
    plan = make_plan(patches, installed_tree(), PLATFORM, environ)
    made = runtime.Runtime(plan, environ)
    made.arm()
    assert made.state(ID)[0] is State.APPLIED, made.state(ID)
    assert "six arguments" in made.state(ID)[1]
    return made


@pytest.fixture(autouse=True)
def seeded(overlay: runtime.Runtime) -> Iterator[None]:
    torch.manual_seed(0)
    yield


def ulps(got: Tensor, expected: Tensor) -> float:
    """The largest distance in units in the last place of the expected values' dtype."""
    spacing = torch.finfo(expected.dtype).eps * expected.abs().double().clamp_min(2**-10).log2().floor().exp2()
    return float(((got.double() - expected.double()).abs() / spacing).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("name", CLASSES)
def test_equals_native_and_writes_to_no_input(layernorm: Any, name: str, m: int, dtype: torch.dtype) -> None:
    norm = norm_of(layernorm, name, dtype)
    x, residual = torch.randn(2, m, N).to(dtype).unbind(0)
    kept = x.clone(), residual.clone()
    y, total = norm(x, residual)
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
    assert total.data_ptr() not in (x.data_ptr(), residual.data_ptr())
    expected, expected_total = norm.forward_native(*kept)
    assert torch.equal(total, expected_total)
    # vLLM rounds the sum before it norms it, and the norm before the weight; forward_native rounds at the end.
    assert ulps(y, expected) <= (16 if dtype is torch.float32 else 3)


@pytest.mark.parametrize("name", CLASSES)
def test_strided_inputs(layernorm: Any, name: str) -> None:
    """A slice of a wider projection, and a residual of which every other column counts."""
    norm = norm_of(layernorm, name, torch.float32)
    x, residual = torch.randn(3, 2 * N)[:, N:], torch.randn(3, 2 * N)[:, ::2]
    kept = x.clone(), residual.clone()
    got = norm(x, residual)
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
    torch.testing.assert_close(got, norm.forward_native(*kept))


@pytest.mark.parametrize("name", CLASSES)
def test_three_dimensions(layernorm: Any, name: str) -> None:
    norm = norm_of(layernorm, name, torch.float32)
    x, residual = torch.randn(2, 2, 3, N).unbind(0)
    torch.testing.assert_close(norm(x, residual), norm.forward_native(x, residual))


@pytest.mark.parametrize("name", CLASSES)
def test_a_chain_of_layers_keeps_every_residual(layernorm: Any, name: str) -> None:
    """The first layer's input is its residual: norms that wrote to it would change what the second one adds."""
    first, second = norm_of(layernorm, name, torch.float32), norm_of(layernorm, name, torch.float32)
    hidden = torch.randn(4, N)

    def run(forward: str) -> tuple[Tensor, Tensor]:
        normed = getattr(first, forward)(hidden)
        y, residual = getattr(first, forward)(normed * 2, hidden)
        again: tuple[Tensor, Tensor] = getattr(second, forward)(y.sin(), residual)
        return again

    torch.testing.assert_close(run("forward"), run("forward_native"))


def test_what_is_added_to_the_residual(layernorm: Any, overlay: runtime.Runtime) -> None:
    """DeepStack, since 0.5.8: on 0.5.8 both patches act in this call, and without the other one nothing is added."""
    norm = norm_of(layernorm, "RMSNorm", torch.float32)
    if "post_residual_addition" not in inspect.signature(norm.forward_native).parameters:
        pytest.skip("before 0.5.8")
    tensors = torch.randn(3, 4, N)
    kept = tensors.clone()
    torch.testing.assert_close(norm(*tensors), norm.forward_native(*kept))
    assert torch.equal(tensors, kept)
    if overlay.state(DEEPSTACK)[0] is State.APPLIED:
        overlay.uninstall(DEEPSTACK)
        norm = norm_of(layernorm, "RMSNorm", torch.float32)
        torch.testing.assert_close(norm(*tensors), norm.forward_native(*kept[:2]))


def test_taken_out_the_first_residual_raises_again(layernorm: Any, overlay: runtime.Runtime) -> None:
    """Last: it takes the patch out."""
    assert getattr(layernorm.fused_add_rms_norm, MARK) == ID
    overlay.uninstall(ID)
    assert layernorm.fused_add_rms_norm is sys.modules["vllm._custom_ops"].fused_add_rms_norm
    assert MARK not in vars(layernorm.fused_add_rms_norm)
    for name in CLASSES:
        raises_type_error(norm_of(layernorm, name, torch.float32))
