"""Which aiter is taken for the one we know. The op itself needs an AMD GPU: here our own kernel plays it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from patches.kernels import qk_norm_mrope_aiter as module
from patches.kernels.qk_norm_mrope import Geometry, qk_norm_mrope
from patches.kernels.qk_norm_mrope_aiter import AiterPrologue, UnsuitableAiterError
from tests.kernels.mrope_reference import Inputs, make_inputs

GEOMETRY = Geometry(4, 2, 64, (12, 10, 10), interleaved=True, neox=True, eps=1e-6)
Op = Callable[..., None]


def op(*arguments: object) -> None:
    """What aiter documents: results in `q_out` and in caches of blocks of one slot."""
    qkv, qw, kw, cos_sin, positions, tokens, hq, hk, hv, d, neox, sections, interleaved, eps = arguments[:14]
    q_out, k_cache, v_cache, slots, k_scale, v_scale, *rest = arguments[14:]
    assert isinstance(qkv, Tensor) and qkv.shape == (tokens, hq + hk + hv, d)  # type: ignore[operator]
    assert isinstance(k_cache, Tensor) and isinstance(v_cache, Tensor) and isinstance(q_out, Tensor)
    assert k_cache.shape[1:] == v_cache.shape[1:] == (1, hk, d)
    for scale in (k_scale, v_scale):
        assert isinstance(scale, Tensor) and scale.device.type == "cpu" and scale.dtype == torch.float32
        assert scale.item() == 1
    assert rest == [None, None, False, False, 0, 0]
    geometry = Geometry(hq, hk, d, tuple(sections), interleaved, neox, eps)  # type: ignore[arg-type]
    caches = k_cache.squeeze(1), v_cache.squeeze(1)
    q = qk_norm_mrope(geometry, qkv.flatten(1), qw, kw, cos_sin, positions, *caches, slots)  # type: ignore[arg-type]
    q_out.copy_(q.view_as(q_out))


def described(function: Op, parameters: str) -> Op:
    """`function` with another signature, as a wrapper of a compiled operator shows it."""
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    def shown(*arguments: object) -> None:
        function(*arguments)

    shown.__signature__ = signature  # type: ignore[attr-defined]
    return shown


KNOWN = ", ".join(module._PARAMETERS)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Op], None]:
    def put(function: Op) -> None:
        monkeypatch.setitem(sys.modules, "aiter", SimpleNamespace(**{module._NAME: function}))

    return put


@pytest.fixture
def inputs(device: str) -> Inputs:
    return make_inputs(GEOMETRY, 4, torch.float16, device)


def supports(prologue: AiterPrologue, inputs: Inputs) -> bool:
    tensors = inputs.qkv, inputs.q_weight, inputs.k_weight, inputs.cos_sin, inputs.k_cache, inputs.v_cache
    return prologue.supports_tensors(GEOMETRY, *tensors)


@pytest.mark.parametrize("later", ["", ", rotary_dim=0", ", rotary_dim=0, gemma_norm=False"])
def test_every_known_signature_is_taken_and_called_by_it(
    install: Callable[[Op], None], inputs: Inputs, later: str
) -> None:
    install(described(op, KNOWN + later))
    prologue = AiterPrologue()
    assert supports(prologue, inputs)
    own = Inputs(*(t.clone() for t in inputs))
    assert torch.equal(prologue(GEOMETRY, *inputs), qk_norm_mrope(GEOMETRY, *own))
    assert torch.equal(inputs.k_cache[inputs.slots], own.k_cache[own.slots])
    assert torch.equal(inputs.v_cache[inputs.slots], own.v_cache[own.slots])


@pytest.mark.parametrize(
    "parameters",
    [
        KNOWN.replace("qw, kw", "kw, qw"),
        KNOWN.removesuffix(", x"),
        KNOWN + ", rotary_dim=32",
        KNOWN + ", gemma_norm=True",
        KNOWN + ", unheard_of=0",
        KNOWN + ", rotary_dim",
    ],
    ids=["order", "fewer", "another default", "Gemma by default", "unknown", "required"],
)
def test_any_other_signature_is_refused(install: Callable[[Op], None], parameters: str) -> None:
    install(described(op, parameters))
    with pytest.raises(UnsuitableAiterError, match=r"takes other parameters: qkv, .*Use auto"):
        AiterPrologue()


def test_an_aiter_without_the_op_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiter", SimpleNamespace(__name__="aiter"))
    with pytest.raises(UnsuitableAiterError, match=module._NAME):
        AiterPrologue()


def test_no_aiter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiter", None)
    with pytest.raises(UnsuitableAiterError, match=r"aiter.*Use auto"):
        AiterPrologue()


def swapped_caches(*a: object) -> None:
    op(*a[:15], a[16], a[15], *a[17:])


def one_position_axis(*a: object) -> None:
    op(*a[:4], a[4][:1].expand(3, -1), *a[5:])  # type: ignore[index]


def runs(*a: object) -> None:
    op(*a[:12], False, *a[13:])


def one_weight(*a: object) -> None:
    op(*a[:2], a[1], *a[3:])


def slot_written_anyway(*a: object) -> None:
    slots = a[17]
    assert isinstance(slots, Tensor)
    op(*a[:17], slots.where(slots >= 0, 2), *a[18:])


def scaled_values(*a: object) -> None:
    op(*a)
    assert isinstance(a[16], Tensor)
    a[16].mul_(0.5)


def broken(*_: object) -> None:
    raise RuntimeError("no kernel for this architecture")


@pytest.mark.parametrize(
    "wrong", [swapped_caches, one_position_axis, runs, one_weight, slot_written_anyway, scaled_values, broken]
)
def test_an_op_that_computes_something_else_is_refused(
    install: Callable[[Op], None], inputs: Inputs, wrong: Op
) -> None:
    install(described(wrong, KNOWN))
    prologue = AiterPrologue()
    with pytest.raises(UnsuitableAiterError, match=r"(computes something else|RuntimeError: no kernel).*Use auto"):
        supports(prologue, inputs)


def test_the_op_is_compared_once_for_each_geometry_and_dtype(install: Callable[[Op], None], inputs: Inputs) -> None:
    calls = []

    def counted(*arguments: object) -> None:
        calls.append(1)
        op(*arguments)

    install(described(counted, KNOWN))
    prologue = AiterPrologue()
    assert supports(prologue, inputs) and supports(prologue, inputs)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_a_cache_that_is_not_packed_is_left_to_others(install: Callable[[Op], None], inputs: Inputs, name: str) -> None:
    install(described(op, KNOWN))
    wide = torch.zeros(64, 2, 80, dtype=torch.float16, device=inputs.qkv.device)[..., :64]
    assert not supports(AiterPrologue(), inputs._replace(**{name: wide}))


def test_what_our_kernel_does_not_take_is_left_to_others(install: Callable[[Op], None], inputs: Inputs) -> None:
    install(described(op, KNOWN))
    assert not supports(AiterPrologue(), inputs._replace(q_weight=inputs.q_weight.float()))


def test_nothing_is_compared_while_a_graph_is_captured(
    install: Callable[[Op], None], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(described(op, KNOWN))
    prologue = AiterPrologue()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not supports(prologue, inputs)
