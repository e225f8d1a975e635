"""aiter's fused mHC kernel as far as sglang can tell: signature, assertions, and DeepSeek-V4's maths in PyTorch.

Hand-written after aiter's ops/triton/fusions/mhc.py and utils/mhc_config_utils.py (e4048607a5). What aiter asserts of
devices and of its own launch is left out.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

KERNEL = "aiter.ops.triton.fusions.mhc"
CONFIG = "aiter.ops.triton.utils.mhc_config_utils"
HIP = "aiter.ops.mhc"


def post(x: Tensor, residual: Tensor, post_mix: Tensor, comb: Tensor) -> Tensor:
    """x (M, C), residual (M, n, C), post_mix fp32 (M, n), comb fp32 (M, n, n) [source, target] -> (M, n, C)."""
    mixed = torch.einsum("mij,mic->mjc", comb, residual.float())
    return (post_mix.unsqueeze(-1) * x.float().unsqueeze(1) + mixed).to(x.dtype)


def pre(
    residual: Tensor, fn: Tensor, scale: Tensor, base: Tensor, rms_eps: float, eps: float, post_mult: float, iters: int
) -> tuple[Tensor, Tensor, Tensor]:
    """residual (M, n, C), fn fp32 (2n + n*n, n*C) -> layer input (M, C), post fp32 (M, n), comb fp32 (M, n, n)."""
    n = residual.shape[1]
    flat = residual.flatten(1).float()
    mixes = torch.nn.functional.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + rms_eps)
    before = torch.sigmoid(mixes[:, :n] * scale[0] + base[:n]) + eps
    after = torch.sigmoid(mixes[:, n : 2 * n] * scale[1] + base[n : 2 * n]) * post_mult
    comb = torch.softmax((mixes[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n), -1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return torch.einsum("mi,mic->mc", before, residual.float()).to(residual.dtype), after, comb


class AiterKernel:
    """aiter's `mhc_post_pre`; `calls` counts those that its assertions let through."""

    def __init__(self) -> None:
        self.calls = 0

    def mhc_post_pre(
        self,
        layer_input: Tensor,
        residual_in: Tensor,
        post_mix: Tensor,
        comb_mix: Tensor,
        phi: Tensor,
        alphas: Tensor,
        bias: Tensor,
        n: int,
        eps: float = 1e-6,
        hc_pre_eps: float = 1e-6,
        hc_post_mult_value: float = 2.0,
        sinkhorn_iters: int = 20,
        asymmetric_exp_domain: bool = False,
        hc_sinkhorn_eps: float = 1e-6,
        residual_out: Tensor | None = None,
        h_post: Tensor | None = None,
        h_res: Tensor | None = None,
        layer_input_out: Tensor | None = None,
        acc_partial: Tensor | None = None,
        acc_sq_partial: Tensor | None = None,
        config: dict[str, int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens, hidden = layer_input.shape
        assert residual_in.shape == (tokens, n, hidden)
        rows, columns = phi.shape
        assert rows == n * hidden, f"phi K mismatch: expected {n * hidden}, got {rows}"
        assert columns == 2 * n + n * n, f"phi N mismatch: expected {2 * n + n * n}, got {columns}"
        assert post_mix.shape == (tokens, n) and comb_mix.shape == (tokens, n, n)
        assert bias.shape == (columns,) and alphas.shape == (3,)
        assert asymmetric_exp_domain and hc_sinkhorn_eps == hc_pre_eps, "the form of Sinkhorn that sglang asks for"
        assert residual_out is not None and h_post is not None and h_res is not None and layer_input_out is not None
        self.calls += 1
        residual_out.copy_(post(layer_input, residual_in, post_mix, comb_mix))
        y, after, comb = pre(residual_out, phi.T, alphas, bias, eps, hc_pre_eps, hc_post_mult_value, sinkhorn_iters)
        layer_input_out.copy_(y)
        h_post.copy_(after)
        h_res.copy_(comb)
        return h_post, h_res, layer_input_out, residual_out


def get_mhc_config(config_name: str, M: int, C: int, mode: str | None = None) -> tuple[dict[str, int], bool]:
    """aiter's tuned block sizes, of which sglang reads one."""
    return {"BLOCK_K": 64}, False


#: One for the whole process, since whoever looked it up may keep it.
_kernel = AiterKernel()


def provide_kernel(monkeypatch: pytest.MonkeyPatch) -> AiterKernel:
    """An aiter whose Triton kernel is there, with no calls yet, and whose HIP kernel (v0.1.16) is not."""
    _kernel.calls = 0
    _provide(monkeypatch, KERNEL, mhc_post_pre=_kernel.mhc_post_pre)
    _provide(monkeypatch, CONFIG, get_mhc_config=get_mhc_config)
    _provide(monkeypatch, HIP)
    return _kernel


def _provide(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module: ModuleType = module_from_spec(ModuleSpec(name, None))
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
