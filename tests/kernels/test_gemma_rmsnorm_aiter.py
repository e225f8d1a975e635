"""The aiter backend of GemmaRMSNorm: refused unless the signature proves it, and then called as that signature says.

The module stands in for aiter's compiled one, with the signatures of aiter/ops/rmsnorm.py at v0.1.18.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from patches.kernels import gemma_rmsnorm_aiter
from patches.kernels.gemma_rmsnorm_aiter import UnsuitableAiterError, load, supports


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(x.dtype)


def rms_norm_opus(
    out: Tensor, input: Tensor, weight: Tensor, epsilon: float, model_sensitive: int = 0, gemma_norm: bool = False
) -> None:
    out.copy_(_norm(input, weight.float() + gemma_norm, epsilon))


def rmsnorm2d_fwd_with_add_opus(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
    gemma_norm: bool = False,
) -> None:
    residual_out.copy_(input + residual_in)
    out.copy_(_norm(residual_out, weight.float() + gemma_norm, epsilon))


@pytest.fixture
def aiter(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("aiter.ops.rmsnorm")
    vars(module).update(rms_norm_opus=rms_norm_opus, rmsnorm2d_fwd_with_add_opus=rmsnorm2d_fwd_with_add_opus)
    for name in ("aiter", "aiter.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "aiter.ops.rmsnorm", module)
    return module


@pytest.mark.parametrize("extra", ["none", "residual", "residual+post"])
def test_the_result_is_gemmas(aiter: Any, extra: str) -> None:
    norm: Any = load()[0]
    x, residual, post = torch.randn(3, 5, 64).half().unbind(0)
    weight = torch.randn(64).half()
    if extra == "none":
        assert torch.equal(norm(x, weight, 1e-6), _norm(x, weight.float() + 1, 1e-6))
        return
    addend = residual + post if extra == "residual+post" else residual
    y, total = norm(x, weight, 1e-6, residual, post if extra == "residual+post" else None)
    assert torch.equal(total, x + addend)
    assert torch.equal(y, _norm(x + addend, weight.float() + 1, 1e-6))


@pytest.mark.parametrize("name", ["rms_norm_opus", "rmsnorm2d_fwd_with_add_opus"])
def test_a_missing_function_is_refused(aiter: Any, name: str) -> None:
    delattr(aiter, name)
    with pytest.raises(UnsuitableAiterError, match=rf"has no {name}: 1 \+ weight would be rounded.*Use auto"):
        load()


def test_a_function_without_gemma_norm_is_refused(aiter: Any) -> None:
    aiter.rms_norm_opus = lambda out, input, weight, epsilon: None
    with pytest.raises(UnsuitableAiterError, match="has no gemma_norm in rms_norm_opus"):
        load()


def test_no_aiter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiter.ops.rmsnorm", None)
    with pytest.raises(UnsuitableAiterError, match="BACKEND=aiter"):
        load()


class OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on a GPU: `supports` reads metadata only."""

    is_cuda = True


def gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype).as_subclass(OnGpu)


def test_what_the_kernel_reads_is_supported() -> None:
    x, weight = gpu(3, 64), gpu(64)
    assert supports(x, weight) and supports(x, weight, gpu(3, 64), gpu(3, 64))
    assert supports(gpu(3, 128)[:, :64], weight), "rows of a wider matrix"


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 64, dtype=torch.bfloat16), gpu(64)),
        (gpu(3, 64, dtype=torch.float32), gpu(64, dtype=torch.float32)),
        (gpu(3, 64), gpu(64, dtype=torch.float32)),
        (gpu(2, 3, 64), gpu(64)),
        (gpu(0, 64), gpu(64)),
        (gpu(64, 3).t(), gpu(64)),
        (gpu(3, 64), gpu(128)),
        (gpu(3, 64), gpu(128)[::2]),
        (gpu(3, 64), gpu(64), gpu(3, 64, dtype=torch.float32)),
        (gpu(3, 64), gpu(64), gpu(3, 128)[:, :64]),
        (gpu(3, 64), gpu(64), gpu(3, 64), gpu(1, 64)),
    ],
    ids=["cpu", "fp32", "fp32 weight", "3-D", "no rows", "columns apart", "long weight", "strided weight",
         "fp32 residual", "strided residual", "broadcast post"],
)  # fmt: skip
def test_anything_else_is_not(arguments: tuple[Tensor, ...]) -> None:
    assert not gemma_rmsnorm_aiter.supports(*arguments)
