"""Which aiter's fused mHC is taken for the one we know. It needs an AMD GPU: here our own kernel plays it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patches.kernels import mhc as own
from patches.kernels import mhc_aiter as module
from patches.kernels.mhc import Constants, mhc_post_pre
from patches.kernels.mhc_aiter import AiterMhc, UnsuitableAiterError
from tests.kernels.mhc_reference import CONSTANTS, Inputs, make_inputs

Op = Callable[..., Any]

#: aiter's reduction kernel as far as its rule goes: how it reads the sums of squares, before and since #3278.
REDUCTION = """
def _mhc_post_pre_reduce_apply_kernel(acc_sq_ptr, ks_offs, m_offs, ks_mask, m_mask):
    acc_sq = tl.load(acc_sq_ptr + ks_offs, mask=ks_mask[:, None] & m_mask[None, :], other=0.0)
    again = tl.load(
        acc_sq_ptr + ks_offs + m_offs,
        mask={mask},
        other=0.0,
    )
"""
MASKED, UNMASKED = "ks_mask[:, None] & m_mask[None, :]", "m_mask"
LATER = ("asymmetric_exp_domain=False", "hc_sinkhorn_eps=1e-6")
OUTPUTS = ("residual_out=None", "h_post=None", "h_res=None", "layer_input_out=None", "acc_partial=None", "config=None")
KNOWN = ", ".join((*module._POSITIONAL, *LATER, *OUTPUTS))


def op(
    x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, phi: Tensor, alphas: Tensor, bias: Tensor, n: int,
    eps: float, hc_eps: float, post_mult: float, iterations: int, *, asymmetric_exp_domain: bool,
    hc_sinkhorn_eps: float, residual_out: Tensor, h_post: Tensor, h_res: Tensor, layer_input_out: Tensor,
) -> None:  # fmt: skip
    """What aiter documents: `phi` is transposed, and every result is written where it is asked for."""
    assert phi.shape == (n * x.shape[1], own.MIXES) and asymmetric_exp_domain and hc_sinkhorn_eps == hc_eps
    constants = Constants(eps, hc_eps, post_mult, iterations)
    made = mhc_post_pre(x, residual, post, comb, phi.t(), alphas, bias, constants)
    for out, value in zip((residual_out, layer_input_out, h_post, h_res), made, strict=True):
        out.copy_(value)


def described(function: Op, parameters: str) -> Op:
    """`function` with another signature."""

    def shown(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    shown.__signature__ = inspect.signature(eval(f"lambda {parameters}: None"))  # type: ignore[attr-defined]
    return shown


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Puts an aiter in place whose kernel has a source file, as the installed package's has."""

    def put(function: Op, mask: str = MASKED, jitted: bool = True) -> None:
        file = tmp_path / "mhc.py"
        file.write_text(REDUCTION.format(mask=mask))
        names: dict[str, Any] = {}
        exec(compile(file.read_text(), str(file), "exec"), names)
        kernel = names["_mhc_post_pre_reduce_apply_kernel"]
        held = SimpleNamespace(fn=kernel) if jitted else kernel
        monkeypatch.setitem(sys.modules, module._OP[0], SimpleNamespace(mhc_post_pre=function))
        monkeypatch.setitem(sys.modules, module._REDUCTION[0], SimpleNamespace(**{module._REDUCTION[1]: held}))

    return put


@pytest.fixture
def inputs(device: str) -> Inputs:
    torch.manual_seed(0)
    return make_inputs(4, 64, torch.float16, device)


def test_the_known_op_is_called_by_its_signature(install: Callable[..., None], inputs: Inputs) -> None:
    install(described(op, KNOWN))
    aiter = AiterMhc()
    assert aiter.supports(*inputs)
    kept = Inputs(*(t.clone() for t in inputs))
    made = aiter(*inputs, CONSTANTS)
    assert all(torch.equal(a, b) for a, b in zip(made, mhc_post_pre(*inputs, CONSTANTS), strict=True))
    assert all(t.is_contiguous() for t in made)
    assert all(torch.equal(now, then) for now, then in zip(inputs, kept, strict=True))


def test_it_has_our_kernels_rules(install: Callable[..., None], inputs: Inputs, device: str) -> None:
    install(described(op, KNOWN))
    aiter = AiterMhc()
    assert not aiter.supports(*inputs._replace(post=inputs.post.half()))
    assert not aiter.supports(*make_inputs(own.MAX_TOKENS + 1, 64, torch.float16, device))
    assert not aiter.supports(*make_inputs(0, 64, torch.float16, device))


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (KNOWN.replace("asymmetric_exp_domain=False, ", ""), "takes other parameters"),
        (KNOWN.replace("alphas, bias", "bias, alphas"), "takes other parameters"),
        (KNOWN.replace("h_res=None, ", ""), "takes other parameters"),
    ],
)
def test_another_signature_is_refused(install: Callable[..., None], parameters: str, why: str) -> None:
    install(described(op, parameters))
    with pytest.raises(UnsuitableAiterError, match=why):
        AiterMhc()


def test_an_unmasked_sum_is_refused(install: Callable[..., None]) -> None:
    install(described(op, KNOWN), mask=UNMASKED)
    with pytest.raises(UnsuitableAiterError, match="reads past its scratch"):
        AiterMhc()


def test_a_plain_function_is_read_too(install: Callable[..., None]) -> None:
    install(described(op, KNOWN), jitted=False)
    AiterMhc()


def test_a_kernel_without_a_source_is_refused(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(described(op, KNOWN))
    monkeypatch.setitem(sys.modules, module._REDUCTION[0], SimpleNamespace(**{module._REDUCTION[1]: print}))
    with pytest.raises(UnsuitableAiterError, match="reads past its scratch"):
        AiterMhc()


def test_no_aiter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module._OP[0], None)
    with pytest.raises(UnsuitableAiterError, match="Use auto"):
        AiterMhc()


def test_an_op_that_computes_something_else_is_refused(install: Callable[..., None], inputs: Inputs) -> None:
    def logarithmic(*args: Any, **kwargs: Any) -> None:
        op(*args, **kwargs)
        kwargs["h_res"].copy_(torch.full_like(kwargs["h_res"], 0.25))

    install(described(logarithmic, KNOWN))
    aiter = AiterMhc()
    with pytest.raises(UnsuitableAiterError, match="computes something else for C = 64"):
        aiter.supports(*inputs)


def test_an_op_that_fails_is_refused(install: Callable[..., None], inputs: Inputs) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image")

    install(described(failing, KNOWN))
    aiter = AiterMhc()
    with pytest.raises(UnsuitableAiterError, match="RuntimeError: no kernel image"):
        aiter.supports(*inputs)


def test_each_size_is_compared_once(install: Callable[..., None], inputs: Inputs, device: str) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(True)
        op(*args, **kwargs)

    install(described(counted, KNOWN))
    aiter = AiterMhc()
    for _ in range(2):
        aiter.supports(*inputs)
        aiter.supports(*make_inputs(2, 128, torch.float16, device))
    assert len(calls) == 2


def test_nothing_is_compared_during_capture(
    install: Callable[..., None], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(described(op, KNOWN))
    aiter = AiterMhc()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not aiter.supports(*inputs)
    assert aiter.supports(*inputs)
