"""DeepSeek-V4's fused mHC step: from an attention's output to the feed-forward's input.

C is 4096 in the Flash and 7168 in the Pro model; this project takes the step up to 64 tokens, and larger batches show
why. aiter's kernel runs with the configuration that aiter itself chooses, on a GPU it has none for that of gfx942, less
`waves_per_eu`, which Triton takes on AMD only; it rounds `fn` to 16 bits. Errors are from the rounded streams: of the
layer's input relative to its largest element, and of post and comb.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import GPU, AbsentError, Case, Group, Maker, Place, Prepared
from benchmarks.peers import load
from benchmarks.peers.compiled import compiled
from patches.kernels.mhc import MIXES, STREAMS, Boundary, Constants, mhc_post_pre
from patches.proofs.mhc import Inputs, coefficients, native

_SUITE = "mhc"
_HIDDEN, _TOKENS = (4096, 7168), (1, 5, 16, 17, 64, 128, 256)
_CONSTANTS = Constants(rms_eps=1e-6, hc_eps=1e-6, post_mult=2.0, iterations=20)
#: By how much the streams may differ from the definition, relative and absolute: two roundings to bfloat16.
_STREAMS = 2**-7

Step = Callable[[Inputs], Boundary]


def groups(quick: bool) -> list[Group]:
    hidden, tokens = ((7168,), (1, 64)) if quick else (_HIDDEN, _TOKENS)
    cases = tuple(case(c, count) for c in hidden for count in tokens)
    return [Group(_SUITE, "mHC post, coefficients, Sinkhorn, pre (C = hidden size, M = tokens)", "C, M", cases)]


def case(hidden: int, tokens: int, place: Place = GPU) -> Case:
    # Input, output and the streams both ways; post and comb both ways; fn, base and scale once.
    activations = tokens * hidden * (2 + 2 * STREAMS) * place.dtype.itemsize
    weights = (2 * tokens * (STREAMS + STREAMS**2) + MIXES * (STREAMS * hidden + 1) + 3) * torch.float32.itemsize
    return Case(
        label=f"{hidden}, {tokens}",
        parameters={"hidden": hidden, "tokens": tokens, "dtype": place.dtype_name},
        bytes_moved=activations + weights,
        operations=2 * tokens * MIXES * STREAMS * hidden,
        makers=partial(_makers, hidden, tokens, place),
    )


def _makers(hidden: int, tokens: int, place: Place) -> dict[str, Maker]:
    inputs = _fresh(hidden, tokens, place)

    def prepare(make: Callable[[], Step]) -> Prepared:
        step = make()
        return Prepared(partial(step, inputs), _errors(inputs, step(inputs)))

    makers: dict[str, Callable[[], Step]] = {
        "ours": lambda: lambda given: mhc_post_pre(*given, _CONSTANTS),
        "unfused": lambda: _unfused,
        "torch.compile": lambda: compiled(_unfused),
        "aiter Triton": _aiter,
    }
    return {name: partial(prepare, make) for name, make in makers.items()}


def _fresh(hidden: int, tokens: int, place: Place) -> Inputs:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=place.device)

    return Inputs(
        x=place.normal(tokens, hidden),
        residual=place.normal(tokens, STREAMS, hidden),
        post=2 * torch.sigmoid(randn(tokens, STREAMS)),
        comb=torch.softmax(randn(tokens, STREAMS, STREAMS), -1),
        fn=randn(MIXES, STREAMS * hidden) / (STREAMS * hidden) ** 0.5,
        scale=torch.ones(3, device=place.device),
        base=randn(MIXES) * 0.3,
    )


def _errors(inputs: Inputs, made: Boundary) -> dict[str, float]:
    """Raises AbsentError if the streams are not those of the definition up to two roundings."""
    wide = Inputs(*(t.double() for t in inputs))
    exact = wide.post.unsqueeze(-1) * wide.x.unsqueeze(1) + torch.einsum("mij,mic->mjc", wide.comb, wide.residual)
    streams = made.residual.double()
    if not torch.allclose(streams, exact, rtol=_STREAMS, atol=_STREAMS):
        raise AbsentError(f"its streams are wrong by up to {float((streams - exact).abs().max()):.2g}")
    want = coefficients(streams, wide, _CONSTANTS)
    y = torch.einsum("mi,mic->mc", want.pre, streams)
    pairs = (made.post.reshape(want.post.shape), want.post), (made.comb, want.comb)
    return {
        "layer input, relative": float((made.layer_input.double() - y).abs().max() / y.abs().max()),
        "post and comb": max(float((got.double() - wanted).abs().max()) for got, wanted in pairs),
    }


def _unfused(inputs: Inputs) -> Boundary:
    return native(inputs, _CONSTANTS)


def _aiter() -> Step:
    op = load.module("aiter", "aiter.ops.triton.fusions.mhc").mhc_post_pre
    get_config = load.module("aiter", "aiter.ops.triton.utils.mhc_config_utils").get_mhc_config

    def step(inputs: Inputs) -> Boundary:
        tokens, hidden = inputs.x.shape
        config, _ = get_config("MHC_FUSED", tokens, hidden, mode="sinkhorn")
        if torch.version.hip is None:
            config = {name: value for name, value in config.items() if name != "waves_per_eu"}
        made = Boundary(
            torch.empty_like(inputs.residual),
            torch.empty_like(inputs.x),
            torch.empty_like(inputs.post),
            torch.empty_like(inputs.comb),
        )
        op(
            inputs.x, inputs.residual, inputs.post, inputs.comb, inputs.fn.t(), inputs.scale, inputs.base, STREAMS,
            _CONSTANTS.rms_eps, _CONSTANTS.hc_eps, _CONSTANTS.post_mult, _CONSTANTS.iterations,
            asymmetric_exp_domain=True, hc_sinkhorn_eps=_CONSTANTS.hc_eps,
            residual_out=made.residual, h_post=made.post, h_res=made.comb, layer_input_out=made.layer_input,
            config=config,
        )  # fmt: skip
        return made

    return step
