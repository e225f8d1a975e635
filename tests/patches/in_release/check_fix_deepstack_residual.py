"""What `fix-deepstack-residual` does to the real `RMSNorm` or `LayerCommunicator` of one release, with aiter on.

Not collected by name: `test_fix_deepstack_residual.py` runs this file under the overlay, in the simulated ROCm, once
per release. `forward_hip` of 0.5.8, which needs vLLM, is checked by `check_fix_vllm_norm_signature.py`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from overlay import runtime
from overlay.model import State
from tests.patches.in_release import one_rank

ID = "fix-deepstack-residual"
N = 128
IN_NORM = Version(importlib.metadata.version("sglang")) < Version("0.5.9")
BATCH = SimpleNamespace(input_ids=torch.zeros(1))
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: x, residual and post_residual_addition in; the norm and the new residual out.
Step = Callable[[Tensor, Tensor | None, Tensor | None], Any]


@pytest.fixture(scope="session")
def overlay() -> runtime.Runtime:
    from sglang.srt.layers import communicator, layernorm

    assert communicator._use_aiter and layernorm._use_aiter
    found = runtime.current()
    assert found is not None
    assert found.state(ID)[0] is State.APPLIED, found.state(ID)
    return found


@pytest.fixture(scope="session")
def server_args(overlay: runtime.Runtime) -> Any:
    """One gloo process, and the arguments of its server."""
    return one_rank.start()


def norm(dtype: torch.dtype) -> Any:
    from sglang.srt.layers.layernorm import RMSNorm

    torch.manual_seed(0)
    made = RMSNorm(N, eps=1e-6).to(dtype)
    made.weight.data.normal_()
    return made


def layer(dtype: torch.dtype) -> Any:
    """The release's communicator of a layer in the middle of a MoE model, on one GPU."""
    from sglang.srt.layers import communicator

    facts = dict.fromkeys(("is_layer_sparse", "is_previous_layer_sparse", "is_next_layer_sparse"), True)
    known = inspect.signature(communicator._LayerModeComputationContext).parameters
    modes = {name: value for name, value in {**facts, "num_layers": 4, "layer_id": 1}.items() if name in known}
    return communicator.LayerCommunicator(communicator.LayerScatterModes.init_new(**modes), norm(dtype), norm(dtype))


@pytest.fixture(params=["norm"] if IN_NORM else ["fused", "not fused after all"])
def make_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], Step]:
    """What of the release runs: the norm itself, or the preparation of attention after a layer that left its all-reduce
    to the next one, with the fused kernel and without."""
    if request.param == "norm":
        return norm
    fused = request.param == "fused"
    request.getfixturevalue("server_args")
    from sglang.srt.layers import communicator

    # The answer of --enable-aiter-allreduce-fusion; from 0.5.19 on arguments cannot be changed once they are published.
    monkeypatch.setattr(communicator, "apply_aiter_all_reduce_fusion", lambda _tensor: fused)

    def make(dtype: torch.dtype) -> Step:
        prepared = layer(dtype)
        fuse = Mock(wraps=prepared.input_layernorm.forward_with_allreduce_fusion)
        prepared.input_layernorm.forward_with_allreduce_fusion = fuse

        def step(x: Tensor, residual: Tensor | None, post: Tensor | None) -> Any:
            x._sglang_needs_allreduce_fusion = True  # type: ignore[attr-defined]
            fuse.reset_mock()
            done = prepared.prepare_attn(x, residual, BATCH, post_residual_addition=post)
            assert fuse.called == (fused and residual is not None)
            return done

        return step

    return make


def inputs(dtype: torch.dtype, m: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, residual, and a slice of a wider tensor, as the models cut DeepStack's features."""
    torch.manual_seed(1)
    x, residual = torch.randn(2, m, N).to(dtype).unbind(0)
    return x, residual, torch.randn(m, 3 * N).to(dtype)[:, N : 2 * N]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_features_are_added_before_the_norm(
    overlay: runtime.Runtime, make_step: Callable[[torch.dtype], Step], dtype: torch.dtype
) -> None:
    step, (x, residual, post) = make_step(dtype), inputs(dtype)
    kept = [t.clone() for t in (x, residual, post)]
    got = step(x, residual, post)
    assert all(torch.equal(t, before) for t, before in zip((x, residual, post), kept, strict=True))
    # As 0.5.9's RMSNorm does, and forward_cuda of 0.5.8: (residual + post) is rounded, then x is added.
    expected = step(kept[0], kept[1] + kept[2], None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # forward_native adds in fp32, in another order, and rounds once.
    native = norm(dtype).forward_native(*kept)
    eps = torch.finfo(dtype).eps
    for a, b in zip(got, native, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=8 * eps)


def test_without_features_nothing_changes(overlay: runtime.Runtime, make_step: Callable[[torch.dtype], Step]) -> None:
    step, (x, residual, _) = make_step(torch.float32), inputs(torch.float32)
    torch.testing.assert_close(step(x, residual, None), norm(torch.float32).forward_native(x, residual))


def test_the_first_layer_has_no_residual_to_add_to(
    overlay: runtime.Runtime, make_step: Callable[[torch.dtype], Step]
) -> None:
    step, (x, _, post) = make_step(torch.float32), inputs(torch.float32)
    got = step(x, None, post)
    normed = got if isinstance(got, Tensor) else got[0]
    torch.testing.assert_close(normed, norm(torch.float32).forward_native(x))


@pytest.mark.skipif(IN_NORM, reason="prepare_attn is not touched")
def test_a_layer_whose_sum_is_complete_adds_them_once(server_args: Any) -> None:
    """Without the mark of fusion the norm adds them itself."""
    x, residual, post = inputs(torch.float32)
    got = layer(torch.float32).prepare_attn(x, residual, BATCH, post_residual_addition=post)
    torch.testing.assert_close(got, norm(torch.float32).forward_native(x, residual, post))


def test_taken_out_the_features_are_dropped_again(
    overlay: runtime.Runtime, make_step: Callable[[torch.dtype], Step]
) -> None:
    """Last: it takes the patch out."""
    if overlay.state(ID)[0] is State.APPLIED:
        overlay.uninstall(ID)
    step, (x, residual, post) = make_step(torch.float32), inputs(torch.float32)
    torch.testing.assert_close(step(x, residual, post), norm(torch.float32).forward_native(x, residual))
