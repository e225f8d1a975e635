"""A fake of the vLLM that sglang reaches on ROCm: an empty rotary embedding, and the two norms as vLLM has them."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType

import torch
from torch import Tensor


def rms_norm(out: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """vllm/_custom_ops.py: writes the norm of `input` to `out`."""
    out.copy_(_normed(input, weight, epsilon))


def fused_add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    """vllm/_custom_ops.py: `residual` becomes the sum of both, in its own dtype, and `input` the norm of that sum.

    The kernel indexes both as if they were contiguous; a real one would read past what is not.
    """
    assert input.is_contiguous() and residual.is_contiguous() and input.dtype == residual.dtype
    residual.add_(input)
    input.copy_(_normed(residual, weight, epsilon))


def _normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """layernorm_kernels.cu: statistics in fp32, rounded to the dtype of `x` before the weight is applied."""
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x.float() * scale).to(x.dtype) * weight


def provide_vllm() -> None:
    """The oldest two import vLLM's operators wherever they run on ROCm (moe_runner/triton.py:44)."""
    if importlib.metadata.version("sglang") in ("0.5.6.post2", "0.5.7"):
        install_vllm()


def install_vllm() -> ModuleType:
    """Let `vllm._custom_ops` be importable, whatever the release; the fake module is returned."""
    package, operators = (module_from_spec(ModuleSpec(name, None)) for name in ("vllm", "vllm._custom_ops"))
    package.__dict__["_custom_ops"] = operators
    operators.__dict__.update(rotary_embedding=None, rms_norm=rms_norm, fused_add_rms_norm=fused_add_rms_norm)
    sys.modules.update({"vllm": package, "vllm._custom_ops": operators})
    return operators
