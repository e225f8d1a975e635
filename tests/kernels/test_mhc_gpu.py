"""What only a GPU shows of the fused mHC: bfloat16 on tensor cores at the model's sizes, graphs, streams, builds."""

from __future__ import annotations

import pytest
import torch

from patches.kernels import mhc as kernel
from patches.kernels.mhc import Norm, mhc_post_pre, supports
from tests.kernels.mhc_reference import CONSTANTS, Inputs, assert_boundary, make_inputs, token_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HIDDEN = (4096, 7168)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("logit_scale", [1.0, 10.0])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 64])
def test_the_sizes_of_the_models(
    tokens: int, hidden: int, logit_scale: float, normed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_scratch", {})
    inputs = make_inputs(tokens, hidden, dtype, "cuda", logit_scale)
    norm = Norm(1 + torch.randn(hidden, device="cuda", dtype=dtype) / 4, 1e-6) if normed else None
    before = Inputs(*(t.clone() for t in inputs))
    assert supports(*inputs)
    assert_boundary(mhc_post_pre(*inputs, CONSTANTS, norm), inputs, CONSTANTS, norm)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


@pytest.mark.parametrize("case", ["fn transposed", "x strided", "x is a stream"])
def test_layouts(case: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(17, 7168, dtype, "cuda", 10.0)
    if case == "fn transposed":
        inputs = inputs._replace(fn=inputs.fn.t().contiguous().t())
    elif case == "x strided":
        inputs = inputs._replace(x=torch.cat([inputs.x, inputs.x.neg()], 1)[:, :7168])
    else:
        inputs = inputs._replace(x=inputs.residual[:, 2])
    assert_boundary(mhc_post_pre(*inputs, CONSTANTS), inputs)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_token_does_not_depend_on_its_batch(hidden: int, dtype: torch.dtype) -> None:
    batch = make_inputs(64, hidden, dtype, "cuda")
    whole = mhc_post_pre(*batch, CONSTANTS)
    for t in (0, 31, 63):
        one = mhc_post_pre(*token_of(batch, t), CONSTANTS)
        assert all(torch.equal(alone[0], among[t]) for alone, among in zip(one, whole, strict=True))


def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    inputs = make_inputs(64, 7168, dtype, "cuda")
    first = mhc_post_pre(*inputs, CONSTANTS)
    for _ in range(20):
        again = mhc_post_pre(*inputs, CONSTANTS)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("tokens", [1, 64])
def test_captured_graphs_read_everything_at_replay(tokens: int, dtype: torch.dtype) -> None:
    """Two calls in one graph, as of two layers: the second starts from what the first made."""
    inputs, weights = make_inputs(tokens, 7168, dtype, "cuda"), make_inputs(1, 7168, dtype, "cuda")[4:]

    def both() -> list[kernel.Boundary]:
        first = mhc_post_pre(*inputs, CONSTANTS)
        return [first, mhc_post_pre(first.layer_input, first.residual, first.post, first.comb, *weights, CONSTANTS)]

    both()  # compiles: no module may be loaded during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = both()
    for _ in range(3):
        for buffer, fresh in zip(inputs, make_inputs(tokens, 7168, dtype, "cuda", 4.0), strict=True):
            buffer.copy_(fresh)
        for tensor in (*made[0], *made[1]):
            tensor.fill_(float("nan"))
        graph.replay()
        mhc_post_pre(*make_inputs(tokens, 7168, dtype, "cuda"), CONSTANTS)  # an eager call between two replays
        first = made[0]
        assert_boundary(first, inputs)
        assert_boundary(made[1], Inputs(first.layer_input, first.residual, first.post, first.comb, *weights))


def test_a_graph_does_not_use_the_pooled_scratch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(4, 4096, dtype, "cuda")
    mhc_post_pre(*inputs, CONSTANTS)
    monkeypatch.setattr(kernel, "_scratch", {})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = mhc_post_pre(*inputs, CONSTANTS)
    assert not kernel._scratch
    graph.replay()
    assert_boundary(made, inputs)


def test_streams_do_not_share_scratch(dtype: torch.dtype) -> None:
    """Each has work in front that delays it, so that the kernels of both overlap."""
    batches = [make_inputs(64, 7168, dtype, "cuda") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in batches]  # type: ignore[no-untyped-call]
    mhc_post_pre(*batches[0], CONSTANTS)
    for _ in range(20):
        torch.cuda.synchronize()
        made = []
        for batch, stream in zip(batches, streams, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]
                made.append(mhc_post_pre(*batch, CONSTANTS))
        torch.cuda.synchronize()
        for boundary, batch in zip(made, batches, strict=True):
            assert_boundary(boundary, batch)


def test_the_host_never_waits_for_the_gpu(dtype: torch.dtype) -> None:
    inputs = make_inputs(16, 4096, dtype, "cuda")
    mhc_post_pre(*inputs, CONSTANTS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert supports(*inputs)
        mhc_post_pre(*inputs, CONSTANTS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_build_of_each_kernel_serves_every_batch() -> None:
    functions = kernel._post_kernel, kernel._pre_kernel

    def count() -> list[int]:
        return [len(function.device_caches[torch.cuda.current_device()][0]) for function in functions]

    hidden = 1536  # no other test's
    mhc_post_pre(*make_inputs(2, hidden, torch.bfloat16, "cuda"), CONSTANTS)
    before = count()
    for tokens in (1, 2, 15, 16, 17, 64):
        inputs = make_inputs(tokens, hidden, torch.bfloat16, "cuda")
        assert_boundary(mhc_post_pre(*inputs, CONSTANTS), inputs)
    assert count() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current(dtype: torch.dtype) -> None:
    inputs = make_inputs(16, 4096, dtype, "cuda:1")
    assert torch.cuda.current_device() == 0
    made = mhc_post_pre(*inputs, CONSTANTS)
    assert torch.cuda.current_device() == 0
    assert_boundary(made, inputs)
    assert not supports(*inputs._replace(base=inputs.base.to("cuda:0")))
