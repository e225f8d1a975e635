"""What only a GPU shows of the fused Gemma RMSNorm: the native path's own bits, graphs, streams, devices."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import gemma_rmsnorm as kernel
from patches.kernels.gemma_rmsnorm import gemma_rmsnorm, supports
from tests.kernels import norm_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EPS = 1e-6


def native(x: Tensor, weight: Tensor, residual: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
    """The operations of SGLang's ``GemmaRMSNorm.forward_native``, one kernel each."""
    total = x + (residual + post)
    wide = total.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + EPS)
    return (scaled * (1.0 + weight.float())).to(x.dtype), total


def inputs(m: int, n: int, dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual, post = (torch.randn(m, n, device=device).to(dtype) for _ in range(3))
    return x, (torch.randn(n, device=device) * 0.2).to(dtype), residual, post


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("n", [64, 128, 256, 512, 2048, 4096, 5120, 7168, 16384])
@pytest.mark.parametrize("m", [1, 3, 64, 1000])
def test_residual_is_native_bit_for_bit_and_y_within_one_ulp(n: int, m: int, dtype: torch.dtype) -> None:
    x, weight, residual, post = inputs(m, n, dtype)
    y, total = gemma_rmsnorm(x, weight, EPS, residual, post)
    want_y, want_total = native(x, weight, residual, post)
    assert torch.equal(total, want_total)
    assert int(norm_reference.ulps_apart(y, want_y).max()) <= 1


@pytest.mark.parametrize("n", [64, 256, 2048, 4096, 5120, 7168, 16384])
@pytest.mark.parametrize("m", [1, 3, 64, 2048])
def test_in_place_gives_the_same_bits_and_the_same_build(
    n: int, m: int, dtype: torch.dtype, compilations: list[str]
) -> None:
    x, weight, residual, _ = inputs(m, n, dtype)
    want_y, want_total = gemma_rmsnorm(x, weight, EPS, residual)
    compilations.clear()
    y, total = gemma_rmsnorm(x, weight, EPS, residual, overwrite=True)
    assert y is x and total is residual
    assert torch.equal(y, want_y) and torch.equal(total, want_total)
    assert not compilations


def test_a_graph_captured_in_place_replays_on_what_its_buffers_hold(dtype: torch.dtype) -> None:
    """As a server's: static buffers, written by the captured kernels themselves."""
    x, weight, residual, _ = inputs(32, 2048, dtype)
    gemma_rmsnorm(x, weight, EPS, residual, overwrite=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, total = gemma_rmsnorm(x, weight, EPS, residual, overwrite=True)
    for _ in range(3):
        fresh_x, _, fresh_residual, _ = inputs(32, 2048, dtype)
        x.copy_(fresh_x)
        residual.copy_(fresh_residual)
        graph.replay()
        want_y, want_total = gemma_rmsnorm(fresh_x, weight, EPS, fresh_residual)
        assert torch.equal(y, want_y) and torch.equal(total, want_total)


def test_a_captured_graph_reads_inputs_and_weight_at_replay(dtype: torch.dtype) -> None:
    x, weight, residual, post = inputs(32, 2048, dtype)
    gemma_rmsnorm(x, weight, EPS, residual, post)  # compiles: no module may be loaded during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, total = gemma_rmsnorm(x, weight, EPS, residual, post)
    for _ in range(2):
        for buffer, fresh in zip((x, weight, residual, post), inputs(32, 2048, dtype), strict=True):
            buffer.copy_(fresh)
        y.fill_(float("nan"))
        total.fill_(float("nan"))
        graph.replay()
        want = norm_reference.expected(x, weight, EPS, residual, post)
        assert want.total is not None
        assert torch.equal(total, want.total)
        norm_reference.assert_close(y, want.y)


def test_the_host_never_waits_for_the_gpu(dtype: torch.dtype) -> None:
    x, weight, residual, post = inputs(32, 2048, dtype)
    gemma_rmsnorm(x, weight, EPS, residual, post)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert supports(x, weight, residual, post)
        gemma_rmsnorm(x, weight, EPS, residual, post)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_kernel_runs_on_the_current_stream(dtype: torch.dtype) -> None:
    """Launched elsewhere, it would not wait for the spin that precedes it on this stream, and read x too early."""
    x, weight, residual, post = inputs(4, 2048, dtype)
    gemma_rmsnorm(x, weight, EPS, residual, post)
    fresh = inputs(4, 2048, dtype)[0]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        x.copy_(fresh)
        _, total = gemma_rmsnorm(x, weight, EPS, residual, post)
    stream.synchronize()
    assert torch.equal(total, fresh + (residual + post))


def test_one_build_serves_every_batch_size() -> None:
    kernel_cache = kernel._gemma_rmsnorm_kernel.device_caches[torch.cuda.current_device()][0]
    n = 3072  # no other test's
    before = len(kernel_cache)
    for m in (1, 2, 16, 17, 1000):
        x, weight, residual, _ = inputs(m, n, torch.float16)
        gemma_rmsnorm(x, weight, EPS, residual)
    assert len(kernel_cache) == before + 1


@triton.jit  # type: ignore[untyped-decorator]
def _announce_then_write(x_ptr: tl.tensor, turns: tl.tensor, N: tl.constexpr) -> None:
    """Lets the kernel after it start, and writes 1 to every element long after that."""
    tl.extra.cuda.gdc_launch_dependents()
    value = tl.zeros((), tl.float32)
    for _ in range(turns):
        value = tl.sqrt(value + 1.0)
    cols = tl.arange(0, N)
    tl.store(x_ptr + tl.program_id(0) * N + cols, tl.where(cols >= 0, tl.minimum(value, 1.0), 0.0))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None or torch.cuda.get_device_capability() < (9, 0),
    reason="needs a GPU with programmatic dependent launch",
)
def test_the_norm_waits_for_the_kernel_that_writes_its_input(dtype: torch.dtype) -> None:
    """A program of the norm is on the GPU before the kernel ahead of it has written anything."""
    x = torch.zeros(4, 1024, dtype=dtype, device="cuda")
    weight = torch.zeros(1024, dtype=dtype, device="cuda")
    gemma_rmsnorm(x, weight, EPS)  # compiled before
    _announce_then_write[(4,)](x, 1, N=1024, launch_pdl=True)
    x.zero_()
    torch.cuda.synchronize()
    _announce_then_write[(4,)](x, 200_000, N=1024, launch_pdl=True)
    y = gemma_rmsnorm(x, weight, EPS)
    assert isinstance(y, Tensor) and bool((y == 1).all())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current(dtype: torch.dtype) -> None:
    x, weight, residual, post = inputs(8, 2048, dtype, "cuda:1")
    assert torch.cuda.current_device() == 0
    y, total = gemma_rmsnorm(x, weight, EPS, residual, post)
    assert torch.cuda.current_device() == 0
    assert y.device == total.device == x.device
    want = norm_reference.expected(x, weight, EPS, residual, post)
    assert want.total is not None
    assert torch.equal(total, want.total)
    norm_reference.assert_close(y, want.y)
    assert not supports(x, weight.to("cuda:0"))
