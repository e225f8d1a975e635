"""DeepSeek-V4's fused mHC step against its definition in float64, and against the operations that SGLang writes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overlay.bound import Bound, absolute
from overlay.verify.case import Case, Draw, Expected, Tensors, within
from overlay.verify.shapes import Shapes
from patches import dsv4_fused_mhc as patch
from patches.kernels import mhc as own
from patches.kernels.mhc import MAX_TOKENS, MIXES, STREAMS, Boundary, Constants
from patches.kernels.mhc_aiter import AiterMhc
from patches.mhc_fusion import POST_MULT

_N = STREAMS


class Inputs(NamedTuple):
    """The tensors of one call, in the order of the kernel's arguments."""

    x: Tensor
    residual: Tensor
    post: Tensor
    comb: Tensor
    fn: Tensor
    scale: Tensor
    base: Tensor


class Coefficients(NamedTuple):
    """What the streams of a token say about its next sublayer, in the dtype of `fn`."""

    pre: Tensor
    post: Tensor
    comb: Tensor


def native(inputs: Inputs, constants: Constants) -> Boundary:
    """The operations of `hc_post_torch_impl` and `hc_pre_torch_impl`, one kernel each."""
    mixed = (inputs.comb.unsqueeze(-1) * inputs.residual.unsqueeze(2)).sum(dim=1)
    streams = (inputs.post.unsqueeze(-1) * inputs.x.unsqueeze(1) + mixed).type_as(inputs.x)
    pre, post, comb = coefficients(streams, inputs, constants)
    layer_input = (pre.unsqueeze(-1) * streams.float()).sum(dim=1).type_as(inputs.x)
    return Boundary(streams, layer_input, post, comb)


def coefficients(streams: Tensor, inputs: Inputs, constants: Constants) -> Coefficients:
    """From the rounded streams (tokens, 4, C), in the dtype of `inputs.fn`."""
    flat = streams.flatten(1).to(inputs.fn.dtype)
    mixes = torch.nn.functional.linear(flat, inputs.fn)
    mixes = mixes * torch.rsqrt(flat.square().mean(-1, keepdim=True) + constants.rms_eps)
    scale, base = inputs.scale, inputs.base
    pre = torch.sigmoid(mixes[:, :_N] * scale[0] + base[:_N]) + constants.hc_eps
    post = torch.sigmoid(mixes[:, _N : 2 * _N] * scale[1] + base[_N : 2 * _N]) * constants.post_mult
    logits = (mixes[:, 2 * _N :] * scale[2] + base[2 * _N :]).view(-1, _N, _N)
    comb = torch.softmax(logits, -1) + constants.hc_eps
    comb = comb / (comb.sum(-2, keepdim=True) + constants.hc_eps)
    for _ in range(constants.iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + constants.hc_eps)
        comb = comb / (comb.sum(-2, keepdim=True) + constants.hc_eps)
    return Coefficients(pre, post, comb)


def reference(inputs: Inputs, constants: Constants, streams: Tensor, coefficient: float) -> list[Expected]:
    """The definition in float64. What follows from the streams is judged from the rounded `streams` that were made, as
    the stepwise path reads them back; `coefficient` is what an element of post and comb may be off."""
    wide = Inputs(*(t.double() for t in inputs))
    x, residual, post = wide.x[:, None], wide.residual, wide.post[..., None]
    exact = post * x + torch.einsum("mij,mic->mjc", wide.comb, residual)
    magnitude = post.abs() * x.abs() + torch.einsum("mij,mic->mjc", wide.comb.abs(), residual.abs())
    made = streams.double()
    want = coefficients(made, wide, constants)
    y = torch.einsum("mi,mic->mc", want.pre, made)
    summed = torch.einsum("mi,mic->mc", want.pre, made.abs())
    dtype = inputs.x.dtype
    slack = half_unit(y, dtype) + 2**-20 * summed + coefficient * made.abs().sum(1)
    return [
        within("a stream", exact, half_unit(exact, dtype) + 2**-20 * magnitude),
        within("the layer's input", y, slack),
        Expected(Bound("post", coefficient, absolute), want.post),
        Expected(Bound("comb", coefficient, absolute), want.comb),
    ]


def half_unit(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between the values of `dtype` around each element, which is what one rounding may move it."""
    near = exact.abs().to(dtype)
    return (torch.nextafter(near, torch.full_like(near, float("inf"))).double() - near.double()) / 2


def make_inputs(draw: Draw, tokens: int, hidden: int, dtype: torch.dtype) -> Inputs:
    """Random tensors whose logits have a standard deviation of about 1."""
    return Inputs(
        x=draw.normal(tokens, hidden, dtype=dtype),
        residual=(draw.normal(tokens, _N, hidden) * 2).to(dtype),
        post=2 * torch.sigmoid(draw.normal(tokens, _N)),
        comb=torch.softmax(draw.normal(tokens, _N, _N), -1),
        fn=draw.normal(MIXES, _N * hidden) / (_N * hidden) ** 0.5,
        scale=torch.tensor([0.9, 1.0, 1.1], device=draw.device),
        base=draw.normal(MIXES) * 0.3,
    )


def cases(shapes: Shapes) -> Iterator[Case]:
    """Decode batches of every model with hyper-connections, up to the largest that the patch fuses."""
    backend = patch.BACKEND.read(os.environ)
    if backend == "off":
        return
    aiter = AiterMhc() if backend == "aiter" else None
    for model in shapes.models:
        connections = model.hyper_connections
        for tokens in shapes.tokens:
            if connections is not None and connections.streams == STREAMS and tokens <= MAX_TOKENS:
                constants = Constants(model.eps, connections.eps, POST_MULT, connections.iterations)
                yield _case(aiter, tokens, model.hidden_size, getattr(torch, model.dtype), constants)


def _case(aiter: AiterMhc | None, tokens: int, hidden: int, dtype: torch.dtype, constants: Constants) -> Case:
    run: Callable[..., Boundary] = own.mhc_post_pre if aiter is None else aiter
    kernel = "triton" if aiter is None else "aiter"
    *_, of_comb = patch.bounds_of(kernel)

    def expected(given: Tensors, made: Sequence[Tensor]) -> list[Expected]:
        inputs = Inputs(*(t for t in given if t is not None))
        return reference(inputs, constants, made[0], of_comb.limit)

    return Case(
        label=f"{tokens} x 4 x {hidden} {str(dtype).removeprefix('torch.')}",
        kernel=kernel,
        inputs=lambda draw: make_inputs(draw, tokens, hidden, dtype),
        takes=own.supports if aiter is None else aiter.supports,
        fused=lambda *tensors: run(*tensors, constants),
        replaced=lambda *tensors: native(Inputs(*tensors), constants),
        expected=expected,
    )
