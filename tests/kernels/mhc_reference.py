"""Oracle for the fused mHC, written from the definition in float64, with the bounds that the kernel states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patches.kernels.mhc import MIXES, STREAMS, Boundary, Constants, Norm
from patches.proofs.mhc import Inputs as Inputs
from patches.proofs.mhc import half_unit as half_unit

CONSTANTS = Constants(rms_eps=1e-6, hc_eps=1e-6, post_mult=2.0, iterations=20)


class Coefficients(NamedTuple):
    """What the streams of a token say about its next sublayer, in float64."""

    pre: Tensor
    post: Tensor
    comb: Tensor


def make_inputs(tokens: int, hidden: int, dtype: torch.dtype, device: str, logit_scale: float = 1.0) -> Inputs:
    """Random tensors whose logits have a standard deviation of about `logit_scale`."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    return Inputs(
        x=randn(tokens, hidden).to(dtype),
        residual=(randn(tokens, STREAMS, hidden) * 2).to(dtype),
        post=2 * torch.sigmoid(randn(tokens, STREAMS)),
        comb=torch.softmax(randn(tokens, STREAMS, STREAMS), -1),
        fn=randn(MIXES, STREAMS * hidden) / (STREAMS * hidden) ** 0.5,
        scale=torch.tensor([0.9, 1.0, 1.1], device=device) * logit_scale,
        base=randn(MIXES) * 0.3,
    )


def token_of(inputs: Inputs, t: int) -> Inputs:
    """The call with one token of a batch alone."""
    one = slice(t, t + 1)
    alone = {name: getattr(inputs, name)[one] for name in ("x", "residual", "post", "comb")}
    return inputs._replace(**alone)


def mixed_streams(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The new streams `(tokens, 4, C)`, unrounded, and the sum of the magnitudes of the five terms of each element."""
    x, residual = inputs.x.double()[:, None], inputs.residual.double()
    post, comb = inputs.post.double()[..., None], inputs.comb.double()
    exact = post * x + torch.einsum("mij,mic->mjc", comb, residual)
    return exact, post.abs() * x.abs() + torch.einsum("mij,mic->mjc", comb.abs(), residual.abs())


def coefficients(streams: Tensor, inputs: Inputs, constants: Constants) -> Coefficients:
    """From the rounded streams `(tokens, 4, C)`."""
    n, flat = STREAMS, streams.flatten(1).double()
    rstd = torch.rsqrt(flat.square().mean(-1, keepdim=True) + constants.rms_eps)
    mixes = (flat @ inputs.fn.double().t()) * rstd
    scale, base = inputs.scale.double(), inputs.base.double()
    pre = torch.sigmoid(mixes[:, :n] * scale[0] + base[:n]) + constants.hc_eps
    post = torch.sigmoid(mixes[:, n : 2 * n] * scale[1] + base[n : 2 * n]) * constants.post_mult
    logits = (mixes[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n)
    return Coefficients(pre, post, sinkhorn(logits, constants.iterations, constants.hc_eps))


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """`(tokens, 4, 4)`: softmax of the rows, then the columns; then both in turn."""
    p = torch.softmax(logits, -1) + eps
    p = p / (p.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        p = p / (p.sum(-1, keepdim=True) + eps)
        p = p / (p.sum(-2, keepdim=True) + eps)
    return p


def assert_boundary(made: Boundary, inputs: Inputs, constants: Constants = CONSTANTS, norm: Norm | None = None) -> None:
    """Every output within the bound of the kernel's docstring."""
    dtype = inputs.x.dtype
    exact, magnitude = mixed_streams(inputs)
    assert bool(((made.residual.double() - exact).abs() <= half_unit(exact, dtype) + 2**-20 * magnitude).all())

    streams = made.residual.double()
    want = coefficients(streams, inputs, constants)
    assert float((made.post.double() - want.post).abs().max()) <= 1e-5
    assert float((made.comb.double() - want.comb).abs().max()) <= 1e-5

    y = torch.einsum("mi,mic->mc", want.pre, streams)
    error = half_unit(y, dtype) + 2**-20 * torch.einsum("mi,mic->mc", want.pre, streams.abs())
    error = error + 1e-5 * streams.abs().sum(1)
    if norm is not None:
        # The norm takes the rounded input. That may differ in a few elements, which moves the root by less than 2**-14.
        rstd = torch.rsqrt(y.to(dtype).double().square().mean(-1, keepdim=True) + norm.eps)
        gain = rstd * norm.weight.double()
        y = y * gain
        error = error * gain.abs() + half_unit(y, dtype) + 2**-14 * y.abs()
    assert bool(((made.layer_input.double() - y).abs() <= error).all())
