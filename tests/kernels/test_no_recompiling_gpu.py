"""After a warm-up no kernel compiles again, whatever batches come; and what becomes of one first met in a capture.

A warm-up is what a server does before its first request: it runs each batch size before it captures it (which
`test_graph_capture.py` finds in sglang's source), and samples one short request.
"""

from __future__ import annotations

import pytest
import torch

from patches.kernels import argmax
from patches.kernels import gemma_rmsnorm as norm
from patches.kernels.argmax import greedy_argmax
from patches.kernels.gemma_rmsnorm import gemma_rmsnorm
from tests.kernels.batches import KERNELS, SIZES, sampled_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", KERNELS)
def test_after_a_warm_up_nothing_compiles(name: str, compilations: list[str]) -> None:
    KERNELS[name](2, "cuda", False)
    assert compilations, "another test has these sizes: no warm-up was seen"
    compilations.clear()
    for batch in sampled_batches(argmax._device(0)[0]) if name == "sampling" else SIZES:
        KERNELS[name](batch, "cuda", True)
    torch.cuda.synchronize()
    assert not compilations


def test_the_norm_may_be_compiled_and_loaded_while_a_graph_is_captured(compilations: list[str]) -> None:
    """No server comes to it, since it runs what it captures before; and it would not fail."""
    x, residual = torch.randn(2, 8, 1792, device="cuda").bfloat16().unbind(0)
    weight = torch.randn(1792, device="cuda", dtype=torch.bfloat16)
    norm._gemma_rmsnorm_kernel.device_caches.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, total = gemma_rmsnorm(x, weight, 1e-6, residual)
    assert compilations
    graph.replay()
    want_y, want_total = gemma_rmsnorm(x, weight, 1e-6, residual)
    assert torch.equal(y, want_y) and torch.equal(total, want_total)


def test_the_argmax_may_be_compiled_and_loaded_while_a_graph_is_captured(compilations: list[str]) -> None:
    logits = torch.randn(8, 3001, device="cuda")
    argmax._warmed.clear()
    for kernel in (argmax._argmax_kernel, argmax._finish_kernel):
        kernel.device_caches.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = greedy_argmax(logits)
    assert compilations
    graph.replay()
    assert torch.equal(ids, logits.argmax(-1))
