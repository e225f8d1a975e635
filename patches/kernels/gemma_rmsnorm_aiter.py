"""aiter's Gemma RMSNorm, where its own signature says that it adds 1 to the weight in fp32.

Most versions have no such kernel: their callers hand in `1 + weight`, rounded to 16 bits. The two functions used here
(aiter/ops/rmsnorm.py, since v0.1.18) take `gemma_norm`, check every dtype themselves and launch on the current
stream. aiter's norm may read the sum before it is rounded, so `y` can differ from the native path by more than one
ulp: this kernel is never chosen automatically.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NEEDED = {
    "rms_norm_opus": ("out", "input", "weight", "epsilon", "gemma_norm"),
    "rmsnorm2d_fwd_with_add_opus": (
        "out",
        "input",
        "residual_in",
        "residual_out",
        "weight",
        "epsilon",
        "gemma_norm",
    ),
}


class UnsuitableAiterError(Exception):
    """The installed aiter has no Gemma RMSNorm that is known to be exact in the weight."""


def load() -> tuple[Callable[..., Tensor | tuple[Tensor, Tensor]], Callable[..., bool]]:
    """The kernel and its call-time rule. Raises UnsuitableAiterError if aiter lacks a function or a parameter."""
    try:
        module = importlib.import_module("aiter.ops.rmsnorm")
    except ImportError as error:
        raise UnsuitableAiterError(f"AMD_SGLANG_GEMMA_RMSNORM_BACKEND=aiter, and {error}. Use auto.") from error
    for name, parameters in _NEEDED.items():
        function = getattr(module, name, None)
        missing = set(parameters) - set(inspect.signature(function).parameters) if function else {name}
        if missing:
            what = ", ".join(sorted(missing)) + (f" in {name}" if function else "")
            raise UnsuitableAiterError(
                f"AMD_SGLANG_GEMMA_RMSNORM_BACKEND=aiter, and this aiter's ops.rmsnorm has no {what}: "
                "1 + weight would be rounded to 16 bits. Use auto."
            )
    return _bind(module), supports


def supports(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, post_residual_addition: Tensor | None = None
) -> bool:
    """Whether every tensor has the one 16-bit dtype of `x` and the layout that the kernel reads."""
    addends = [t for t in (residual, post_residual_addition) if t is not None and residual is not None]
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.dim() == 2
        and x.shape[0] > 0
        and x.stride(1) == 1
        and weight.dtype == x.dtype
        and weight.shape == x.shape[1:]
        and weight.is_contiguous()
        and all(t.dtype == x.dtype and t.shape == x.shape and t.is_contiguous() for t in addends)
    )


def _bind(module: Any) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    norm, add_norm = module.rms_norm_opus, module.rmsnorm2d_fwd_with_add_opus

    def gemma_rmsnorm(
        x: Tensor,
        weight: Tensor,
        eps: float,
        residual: Tensor | None = None,
        post_residual_addition: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if residual is None:
            norm(out=y, input=x, weight=weight, epsilon=eps, gemma_norm=True)
            return y
        if post_residual_addition is not None:
            residual = residual + post_residual_addition
        total = torch.empty_like(y)
        add_norm(out=y, input=x, residual_in=residual, residual_out=total, weight=weight, epsilon=eps, gemma_norm=True)
        return y, total

    return gemma_rmsnorm
