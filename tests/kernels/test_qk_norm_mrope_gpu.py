"""What only a GPU shows of the fused attention prologue: graphs, streams, devices, builds."""

from __future__ import annotations

import pytest
import torch

from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry, qk_norm_mrope
from tests.kernels.mrope_reference import MAX_POSITION, Inputs, assert_rotated, expected, make_inputs, supports

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GEOMETRY = Geometry(32, 8, 128, (24, 20, 20), interleaved=True, neox=True, eps=1e-6)


def check(inputs: Inputs, q: torch.Tensor, geometry: Geometry = GEOMETRY) -> None:
    want_q, want_k, want_v = expected(geometry, inputs)
    assert_rotated(q, want_q)
    assert_rotated(inputs.k_cache[inputs.slots], want_k)
    assert torch.equal(inputs.v_cache[inputs.slots], want_v)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_large_batches(tokens: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(GEOMETRY, tokens, dtype, "cuda", slots=2000)
    check(inputs, qk_norm_mrope(GEOMETRY, *inputs))
    assert int(inputs.k_cache.isnan().all(-1).all(-1).sum()) == 2000 - tokens


def test_a_token_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    batch = make_inputs(GEOMETRY, 64, dtype, "cuda")
    q = qk_norm_mrope(GEOMETRY, *batch)
    for t in (0, 31, 63):
        own_caches = {"k_cache": torch.zeros_like(batch.k_cache), "v_cache": torch.zeros_like(batch.v_cache)}
        one = batch._replace(
            qkv=batch.qkv[t : t + 1],
            positions=batch.positions[:, t : t + 1],
            slots=batch.slots[t : t + 1],
            **own_caches,
        )
        assert torch.equal(qk_norm_mrope(GEOMETRY, *one), q[t : t + 1])
        assert torch.equal(one.k_cache[one.slots], batch.k_cache[one.slots])


def test_a_captured_graph_reads_everything_at_replay(dtype: torch.dtype) -> None:
    inputs = make_inputs(GEOMETRY, 16, dtype, "cuda")
    qk_norm_mrope(GEOMETRY, *inputs)  # compiles: no module may be loaded during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = qk_norm_mrope(GEOMETRY, *inputs)
    for _ in range(2):
        for buffer, fresh in zip(inputs, make_inputs(GEOMETRY, 16, dtype, "cuda"), strict=True):
            buffer.copy_(fresh)
        q.fill_(float("nan"))
        graph.replay()
        check(inputs, q)


def test_the_host_never_waits_for_the_gpu(dtype: torch.dtype) -> None:
    inputs = make_inputs(GEOMETRY, 16, dtype, "cuda")
    qk_norm_mrope(GEOMETRY, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert supports(GEOMETRY, inputs)
        qk_norm_mrope(GEOMETRY, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_kernel_runs_on_the_current_stream(dtype: torch.dtype) -> None:
    """Launched elsewhere, it would not wait for the spin that precedes it on this stream, and read qkv too early."""
    inputs = make_inputs(GEOMETRY, 16, dtype, "cuda")
    qk_norm_mrope(GEOMETRY, *inputs)
    fresh = make_inputs(GEOMETRY, 16, dtype, "cuda").qkv
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        inputs.qkv.copy_(fresh)
        q = qk_norm_mrope(GEOMETRY, *inputs)
    stream.synchronize()
    check(inputs, q)


def test_one_build_serves_every_batch_and_every_position_stride() -> None:
    builds = kernel._qk_norm_mrope_kernel.device_caches[torch.cuda.current_device()][0]
    geometry = GEOMETRY._replace(num_q_heads=24)  # no other test's
    before = len(builds)
    for tokens in (1, 2, 16, 17, 60):
        inputs = make_inputs(geometry, tokens, torch.float16, "cuda")
        wide = torch.randint(0, MAX_POSITION, (3, 64 + tokens), device="cuda")
        for positions in (inputs.positions, wide[:, :tokens], wide[0, :tokens].expand(3, -1), wide[:, ::2][:, :tokens]):
            inputs = inputs._replace(positions=positions)
            check(inputs, qk_norm_mrope(geometry, *inputs), geometry)
    assert len(builds) == before + 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current(dtype: torch.dtype) -> None:
    inputs = make_inputs(GEOMETRY, 16, dtype, "cuda:1")
    assert torch.cuda.current_device() == 0
    q = qk_norm_mrope(GEOMETRY, *inputs)
    assert torch.cuda.current_device() == 0
    assert q.device == inputs.qkv.device
    check(inputs, q)
    assert not supports(GEOMETRY, inputs._replace(slots=inputs.slots.to("cuda:0")))
