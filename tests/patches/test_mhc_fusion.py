"""The pairing of `hc_post` with the `hc_pre` that follows it, and the order of backends, without sglang."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import counters
from overlay.counters import CALLS, FAILURES, FALLBACKS
from overlay.guard import Guard
from patches.kernels.mhc import Boundary, Constants
from patches.mhc_fusion import Backend, Fusion


class Kernel:
    """A backend that marks its results with its number."""

    def __init__(self, number: float, takes: bool = True, fails: bool = False) -> None:
        self.number, self.takes, self.fails = number, takes, fails
        self.calls: list[tuple[Any, ...]] = []

    def supports(self, *tensors: Tensor) -> bool:
        return self.takes

    def run(self, *arguments: Any) -> Boundary:
        self.calls.append(arguments)
        if self.fails:
            raise ValueError("broken")
        return Boundary(*(torch.full((2,), self.number) for _ in Boundary._fields))

    def backend(self, name: str = "one") -> Backend:
        return Backend(name, self.supports, self.run)


def fusion_of(*backends: Backend) -> Fusion:
    return Fusion(backends, Guard("the-patch", 0, counters.in_memory(1)))


def make_layer() -> Any:
    fn, scale, base = torch.zeros(3), torch.zeros(4), torch.zeros(5)
    return SimpleNamespace(
        hc_ffn_fn=fn, hc_ffn_scale=scale, hc_ffn_base=base, rms_norm_eps=1e-6, hc_eps=1e-5, hc_sinkhorn_iters=7
    )


def state() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)


def test_the_layers_own_weights_and_constants_are_used() -> None:
    kernel, layer, given = Kernel(1), make_layer(), state()
    streams = fusion_of(kernel.backend()).post(layer, *given)
    ((*tensors, constants),) = kernel.calls
    wanted = (*given, layer.hc_ffn_fn, layer.hc_ffn_scale, layer.hc_ffn_base)
    assert all(a is b for a, b in zip(tensors, wanted, strict=True))
    assert constants == Constants(rms_eps=1e-6, hc_eps=1e-5, post_mult=2.0, iterations=7)
    assert streams is not None and streams.tolist() == [1, 1]


def test_what_is_ready_is_taken_once_by_its_own_streams_and_matrix() -> None:
    fusion, layer = fusion_of(Kernel(1).backend()), make_layer()
    streams = fusion.post(layer, *state())
    assert streams is not None
    assert fusion.take(streams.clone(), layer.hc_ffn_fn) is None
    assert fusion.take(streams, layer.hc_ffn_fn.clone()) is None
    taken = fusion.take(streams, layer.hc_ffn_fn)
    assert taken is not None and taken.residual is streams
    assert fusion.take(streams, layer.hc_ffn_fn) is None


def test_the_two_latest_attentions_are_expected() -> None:
    fusion = fusion_of()
    posts = [torch.zeros(1) for _ in range(3)]
    for post in posts:
        fusion.expect(post)
    assert [fusion.expects(post) for post in posts] == [False, True, True]
    assert not fusion.expects(torch.zeros(1))


def test_an_expected_tensor_is_not_kept_alive() -> None:
    """Its memory may be a captured graph's; and a new tensor at its address is another one."""
    fusion = fusion_of()
    post = torch.zeros(1)
    fusion.expect(post)
    (held,) = fusion._attention
    del post
    gc.collect()
    assert held() is None


def test_backends_are_tried_in_order() -> None:
    first, second = Kernel(1, takes=False), Kernel(2)
    fusion = fusion_of(first.backend(), second.backend())
    streams = fusion.post(make_layer(), *state())
    assert streams is not None and streams.tolist() == [2, 2] and not first.calls
    assert (fusion.guard.counts[CALLS], fusion.guard.counts[FALLBACKS]) == (1, 0)
    fusion = fusion_of(first.backend())
    assert fusion.post(make_layer(), *state()) is None
    assert (fusion.guard.counts[CALLS], fusion.guard.counts[FALLBACKS]) == (0, 1)


def test_one_that_fails_is_left_at_once_and_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Kernel(1, fails=True), Kernel(2)
    fusion = fusion_of(first.backend("aiter"), second.backend("triton"))
    for _ in range(3):
        streams = fusion.post(make_layer(), *state())
        assert streams is not None and streams.tolist() == [2, 2]
    assert len(first.calls) == 1 and len(second.calls) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "aiter failed and is off in this process, triton takes over: ValueError: broken" in said[0]
    assert fusion.guard.on and (fusion.guard.counts[CALLS], fusion.guard.counts[FAILURES]) == (3, 1)


def test_after_the_last_one_the_release_computes(capsys: pytest.CaptureFixture[str]) -> None:
    only = Kernel(1, fails=True)
    fusion, post = fusion_of(only.backend()), torch.zeros(1)
    fusion.expect(post)
    assert fusion.expects(post)
    assert fusion.post(make_layer(), *state()) is None
    assert fusion.post(make_layer(), *state()) is None
    assert len(only.calls) == 1
    assert not fusion.guard.on and not fusion.expects(post)
    assert capsys.readouterr().err.count("its kernel failed, upstream's path serves: ValueError: broken") == 1


def test_what_is_ready_is_not_handed_out_once_the_guard_is_off() -> None:
    fusion, layer = fusion_of(Kernel(1).backend()), make_layer()
    streams = fusion.post(layer, *state())
    assert streams is not None
    fusion.guard.on = False
    assert fusion.take(streams, layer.hc_ffn_fn) is None


def test_a_rule_that_raises_counts_as_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """aiter's compares results on first use, and says in an error that they differ."""

    def refuse(*_: Tensor) -> bool:
        raise ValueError("computes something else")

    second = Kernel(2)
    fusion = fusion_of(Backend("aiter", refuse, Kernel(1).run), second.backend())
    assert fusion.post(make_layer(), *state()) is not None
    assert "computes something else" in capsys.readouterr().err
