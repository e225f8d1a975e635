"""What only a GPU shows of guards: graphs that are really captured, and errors at the sizes of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import guard as guards
from overlay.counters import CALLS, SHADOWED
from overlay.guard import Guard
from patches import gemma_rmsnorm, greedy_sampler
from patches.kernels import gemma_rmsnorm as kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Norm:
    """What the patched method reads of a `GemmaRMSNorm`, with upstream's own arithmetic (layernorm.py:420, 0.5.9)."""

    variance_epsilon = 1e-6

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self.weight = torch.nn.Parameter(torch.randn(n, device="cuda", dtype=dtype) / 2, requires_grad=False)

    def forward_native(self, x: Tensor, residual: Tensor | None = None) -> Any:
        total = x if residual is None else x + residual
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.variance_epsilon)
        y = (wide * (1.0 + self.weight.float())).to(x.dtype)
        return y if residual is None else (y, total)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new guard for every test."""
    monkeypatch.setattr(guards, "_guards", {})


@pytest.fixture
def forward() -> Callable[..., Any]:
    return gemma_rmsnorm.make_forward_hip(None)


@pytest.fixture
def guard(forward: Callable[..., Any]) -> Guard:
    return guards.guard("gemma-rmsnorm")


@pytest.mark.parametrize("n", [256, 2304, 5120, 8192])
@pytest.mark.parametrize("m", [1, 64, 4096])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_right_norm_passes_its_shadow_run(
    forward: Callable[..., Any], guard: Guard, m: int, n: int, with_residual: bool, dtype: torch.dtype
) -> None:
    guard.shadow_runs = 3
    for _ in range(3):
        x, residual = torch.randn(2, m, n, device="cuda").to(dtype).unbind(0)
        forward(Norm(n, dtype), x, *([residual] if with_residual else []))
    assert guard.on and (guard.counts[CALLS], guard.counts[SHADOWED]) == (3, 3)
    assert guard.worst is not None and guard.worst.error <= 1


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("vocab", [151666, 256000])
def test_right_ids_pass_their_shadow_run(batch: int, vocab: int, dtype: torch.dtype) -> None:
    argmax = greedy_sampler._argmax("triton")
    guard = guards.guard("greedy-sampler")
    guard.shadow_runs = 1
    argmax(torch.randn(batch, vocab, device="cuda").to(dtype))
    assert guard.on and guard.counts[SHADOWED] == 1 and guard.worst is not None and guard.worst.error == 0


def test_a_captured_call_is_not_shadowed(forward: Callable[..., Any], guard: Guard, dtype: torch.dtype) -> None:
    norm, x = Norm(2304, dtype), torch.randn(5, 2304, device="cuda").to(dtype)
    forward(norm, x)  # compiles: no module may be loaded during capture
    guard.shadow_runs = 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = forward(norm, x)
    assert guard.shadow_runs == 1 and guard.counts[SHADOWED] == 0
    x.normal_()
    graph.replay()
    assert torch.equal(y, forward(norm, x)) and guard.counts[SHADOWED] == 1


def test_a_failure_during_capture_leaves_a_graph_of_upstreams_path(
    forward: Callable[..., Any], guard: Guard, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such instruction")

    norm, x = Norm(2304, dtype), torch.randn(5, 2304, device="cuda").to(dtype)
    norm.forward_native(x)
    monkeypatch.setattr(kernel, "_launch", fail)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = forward(norm, x)
    assert not guard.on
    x.normal_()
    graph.replay()
    assert torch.equal(y, norm.forward_native(x))
