"""Qwen3-VL on the real engine in the simulated ROCm: the fused attention prologue of the overlay, and upstream's under
its guards, give transformers' tokens, and the scheduler's counters say which one ran."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overlay.simulate.settings import AITER_HEAD
from tests.engine.conftest import COUNT, tokens_of_transformers, write_checkpoint
from tests.engine.runs import Run, generate

LAYERS = 2
FUSED, GUARDS = "qwen3-fused-attention", "fix-fused-mrope-guards"
OURS = "triton:patches.kernels.qk_norm_mrope._qk_norm_mrope_kernel"
AITER = "aiter.ops.fused_qk_norm_mrope_cache_quant.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
WITH_AITER = {"SGLANG_USE_AITER": "1", "AMD_SGLANG_SIMULATE_AITER": AITER_HEAD}
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return write_checkpoint("qwen3-vl")


@pytest.fixture(scope="module")
def transformers_tokens(checkpoint: Path) -> list[list[int]]:
    tokens = tokens_of_transformers(checkpoint)
    assert all(len(set(answer)) >= 6 for answer in tokens), "a wrong attention might say the same"
    return tokens


def layer_steps(run: Run) -> int:
    """Layers times decode steps: sglang's decode attention runs this kernel once in each."""
    (count,) = [count for name, count in run.calls.items() if name.endswith("decode_attention._fwd_kernel_stage2")]
    assert count % LAYERS == 0 and count >= LAYERS * (COUNT - 1)
    return count


def mropes(run: Run) -> int:
    """Rotary embeddings by sglang's stepwise path: one of each layer in the prefill, and those of stepwise decoding."""
    (count,) = [count for name, count in run.calls.items() if name.endswith("._triton_mrope_forward_fused")]
    return count


RUNS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "fused": ("0.5.9", (), {}),
    "stepwise": ("0.5.9", ("--disable", FUSED), {}),
    "guarded": ("0.5.12.post1", (), WITH_AITER),
    "unguarded": ("0.5.12.post1", ("--disable", GUARDS), WITH_AITER),
}


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Run]]:
    """Starts every run, one per core at a time; each is waited for by the test that needs it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = {
            name: pool.submit(generate, release, checkpoint, tmp_path_factory.mktemp(name), COUNT, *options, **environ)
            for name, (release, options, environ) in RUNS.items()
        }
        yield lambda name: started[name].result()


def test_the_fused_kernel_serves_every_decode_step(
    runs: Callable[[str], Run], transformers_tokens: list[list[int]]
) -> None:
    fused, stepwise = runs("fused"), runs("stepwise")
    assert fused.tokens == stepwise.tokens == transformers_tokens
    assert (fused.states[FUSED], stepwise.states[FUSED]) == ("applied", "disabled")
    assert fused.calls[OURS] == layer_steps(fused) and mropes(fused) == LAYERS
    assert OURS not in stepwise.calls and mropes(stepwise) == LAYERS + layer_steps(stepwise)


def test_aiters_op_under_the_guards_serves_every_decode_step(
    runs: Callable[[str], Run], transformers_tokens: list[list[int]]
) -> None:
    run = runs("guarded")
    assert run.tokens == transformers_tokens
    assert run.states[GUARDS] == "applied"
    assert run.calls[AITER] == layer_steps(run) and mropes(run) == LAYERS


def test_without_the_guards_a_newer_aiter_garbles_the_cache(
    runs: Callable[[str], Run], transformers_tokens: list[list[int]]
) -> None:
    """It takes the strides of 0.5.12.post1's three-dimensional cache from other dimensions."""
    run = runs("unguarded")
    assert run.calls[AITER] == layer_steps(run)
    assert [answer[0] for answer in run.tokens] == [answer[0] for answer in transformers_tokens], "prefill was right"
    assert run.tokens != transformers_tokens
