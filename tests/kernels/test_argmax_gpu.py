"""What only a GPU shows of the greedy argmax: full size, graphs, streams, devices, builds."""

from __future__ import annotations

import pytest
import torch

from patches.kernels import argmax as kernel
from patches.kernels.argmax import greedy_argmax, supports

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def logits_of(batch: int, vocab: int, dtype: torch.dtype, device: str = "cuda") -> torch.Tensor:
    """Random logits, of which 16-bit ones hold many equal maxima."""
    return torch.randn(batch, vocab, device=device).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 32000, 50257, 128256, 151666, 151936, 248320])
@pytest.mark.parametrize("batch", [1, 3, 8, 64, 99, 132, 256, 400, 1024])
def test_equals_torch(batch: int, vocab: int, dtype: torch.dtype) -> None:
    logits = logits_of(batch, vocab, dtype)
    out = torch.full((batch,), -1, dtype=torch.int32, device="cuda")
    assert torch.equal(greedy_argmax(logits), torch.argmax(logits, -1))
    logits.clamp_(max=2.0)
    assert torch.equal(greedy_argmax(logits, out).long(), torch.argmax(logits, -1))


@pytest.mark.parametrize("column", [0, 2**30 - 1, 2**30, 2**31 - 1])
@pytest.mark.parametrize("vocab", [2**31 - 1, 2**31])
def test_the_longest_row(vocab: int, column: int) -> None:
    """int32 holds the answer and not the length."""
    column = min(column, vocab - 1)
    logits = torch.full((1, vocab), -9.0, dtype=torch.float16, device="cuda")
    logits[0, column] = -3.5
    assert supports(logits)
    assert greedy_argmax(logits, dtype=torch.int32).tolist() == [column]
    logits[0, column] = float("nan")
    assert greedy_argmax(logits).tolist() == [column]


def test_more_rows_than_the_second_dimension_of_a_grid_holds() -> None:
    logits = logits_of(70_000, 33, torch.float16)
    assert torch.equal(greedy_argmax(logits), torch.argmax(logits, -1))


@pytest.mark.parametrize("batch", [2, 200])
def test_a_captured_graph_reads_logits_at_replay(batch: int) -> None:
    logits = logits_of(batch, 151936, torch.bfloat16)
    greedy_argmax(logits)  # compiles: no module may be loaded during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = greedy_argmax(logits)
    for _ in range(2):
        logits.copy_(logits_of(batch, 151936, torch.bfloat16))
        ids.fill_(-1)
        graph.replay()
        assert torch.equal(ids, torch.argmax(logits, -1))


def test_the_host_never_waits_for_the_gpu() -> None:
    logits = logits_of(4, 151936, torch.bfloat16)
    greedy_argmax(logits)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert supports(logits)
        greedy_argmax(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("batch", [2, 200])
def test_the_kernels_run_on_the_current_stream(batch: int) -> None:
    """Launched elsewhere, as aiter's before v0.1.12, they would not wait for the spin that precedes them here."""
    logits = logits_of(batch, 32000, torch.float16)
    greedy_argmax(logits)
    fresh = logits_of(batch, 32000, torch.float16)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        logits.copy_(fresh)
        ids = greedy_argmax(logits)
    stream.synchronize()
    assert torch.equal(ids, torch.argmax(fresh, -1))


def test_one_build_serves_every_batch_and_vocabulary() -> None:
    builds = kernel._argmax_kernel.device_caches[torch.cuda.current_device()][0]
    padded = logits_of(16, 5120, torch.bfloat16)
    greedy_argmax(padded)
    greedy_argmax(padded[:, :5001])
    before = len(builds)
    for batch in (1, 2, 15, 16):
        for vocab in (4096, 5120):
            greedy_argmax(padded[:batch, :vocab])
        for vocab in (4097, 4998, 5001, 5119):
            greedy_argmax(padded[:batch, 5120 - vocab :])
    assert len(builds) == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current() -> None:
    logits = logits_of(8, 50257, torch.float16, "cuda:1")
    assert torch.cuda.current_device() == 0
    ids = greedy_argmax(logits)
    assert torch.cuda.current_device() == 0
    assert ids.device == logits.device
    assert torch.equal(ids, torch.argmax(logits, -1))
