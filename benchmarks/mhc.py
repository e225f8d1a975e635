"""Times DeepSeek-V4's fused mHC step, from an attention's output to the feed-forward's input, against its peers.

    python benchmarks/mhc.py [--dtype bfloat16|float16] [--tokens 1 16 64 ...] [--json out.json]

Compared are: this project's two kernels; the operations that SGLang writes out for it (``hc_post_torch_impl``,
``hc_pre_torch_impl`` and Sinkhorn step by step); the same under ``torch.compile``; and aiter's Triton kernel, where an
aiter is installed that has one and passes this project's probe. ``--tokens`` beyond the bound of ``supports`` are timed
too: they say where the bound should be.

Times are medians of graph replays (``triton.testing.do_bench_cudagraph``), in microseconds, so launch overhead on the
host is not in them. ``floor`` is the time in which the GPU could move the bytes that any implementation must: the
streams in and out, the layer's input and output, and ``fn`` once. The bandwidth is measured first, by copying 1 GiB.
Inputs are the same over and over, so that small batches are served by the L2 cache, and a floor can be undercut.
Errors are against the definition in float64, from the same rounded streams: the largest of the layer's input relative
to its largest element, and the largest of post and comb. Registers and spills of every build are printed last.

Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from triton.testing import do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patches.kernels import mhc as kernel
from patches.kernels.mhc import Boundary, Constants

TOKENS = (1, 4, 16, 32, 64, 128, 256)
HIDDEN = (4096, 7168)  # DeepSeek-V4 Flash and Pro
N = kernel.STREAMS
CONSTANTS = Constants(rms_eps=1e-6, hc_eps=1e-6, post_mult=2.0, iterations=20)


class Inputs(NamedTuple):
    x: Tensor
    residual: Tensor
    post: Tensor
    comb: Tensor
    fn: Tensor
    scale: Tensor
    base: Tensor


Step = Callable[[Inputs], Boundary]


@dataclass(frozen=True)
class Measurement:
    """One implementation at one size. Times in microseconds."""

    implementation: str
    hidden: int
    tokens: int
    dtype: str
    microseconds: float
    floor_microseconds: float
    input_error: float
    coefficient_error: float


def fresh(tokens: int, hidden: int, dtype: torch.dtype) -> Inputs:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda")

    return Inputs(
        x=randn(tokens, hidden).to(dtype),
        residual=randn(tokens, N, hidden).to(dtype),
        post=2 * torch.sigmoid(randn(tokens, N)),
        comb=torch.softmax(randn(tokens, N, N), -1),
        fn=randn(kernel.MIXES, N * hidden) / (N * hidden) ** 0.5,
        scale=torch.ones(3, device="cuda"),
        base=randn(kernel.MIXES) * 0.3,
    )


def ours(inputs: Inputs) -> Boundary:
    return kernel.mhc_post_pre(*inputs, CONSTANTS)


def weights_of(streams: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Pre, post and comb of given streams, in the dtype of ``fn``."""
    flat = streams.flatten(1).to(inputs.fn.dtype)
    mixes = torch.nn.functional.linear(flat, inputs.fn)
    mixes = mixes * torch.rsqrt(flat.square().mean(-1, keepdim=True) + CONSTANTS.rms_eps)
    pre = torch.sigmoid(mixes[:, :N] * inputs.scale[0] + inputs.base[:N]) + CONSTANTS.hc_eps
    post = torch.sigmoid(mixes[:, N : 2 * N] * inputs.scale[1] + inputs.base[N : 2 * N]) * CONSTANTS.post_mult
    logits = (mixes[:, 2 * N :] * inputs.scale[2] + inputs.base[2 * N :]).view(-1, N, N)
    comb = torch.softmax(logits, -1) + CONSTANTS.hc_eps
    comb = comb / (comb.sum(-2, keepdim=True) + CONSTANTS.hc_eps)
    for _ in range(CONSTANTS.iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + CONSTANTS.hc_eps)
        comb = comb / (comb.sum(-2, keepdim=True) + CONSTANTS.hc_eps)
    return pre, post, comb


def stepwise(inputs: Inputs) -> Boundary:
    """The operations that SGLang writes out."""
    mixed = (inputs.comb.unsqueeze(-1) * inputs.residual.unsqueeze(2)).sum(dim=1)
    streams = (inputs.post.unsqueeze(-1) * inputs.x.unsqueeze(1) + mixed).type_as(inputs.x)
    pre, post, comb = weights_of(streams, inputs)
    layer_input = (pre.unsqueeze(-1) * streams.float()).sum(dim=1).type_as(inputs.x)
    return Boundary(streams, layer_input, post, comb)


def compiled_stepwise() -> Step:
    """``stepwise``, to be specialised anew: torch.compile does best when every size is a constant."""
    torch._dynamo.reset()
    return torch.compile(stepwise, dynamic=False)


def implementations() -> dict[str, Callable[[], Step]]:
    from patches.kernels.mhc_aiter import AiterMhc, UnsuitableAiterError

    found: dict[str, Callable[[], Step]] = {
        "ours": lambda: ours,
        "stepwise": lambda: stepwise,
        "torch.compile": compiled_stepwise,
    }
    try:
        aiter = AiterMhc()
    except UnsuitableAiterError as error:
        print(f"without aiter: {error}", file=sys.stderr)
    else:
        found["aiter"] = lambda: lambda inputs: aiter(*inputs, CONSTANTS)
    return found


def errors(inputs: Inputs, made: Boundary) -> tuple[float, float]:
    """Raises ValueError if the streams are not those of the definition up to two roundings."""
    wide = Inputs(*(t.double() for t in inputs))
    exact = wide.post.unsqueeze(-1) * wide.x.unsqueeze(1) + torch.einsum("mij,mic->mjc", wide.comb, wide.residual)
    if not torch.allclose(made.residual.double(), exact, rtol=2**-7, atol=2**-7):
        raise ValueError("the streams are wrong")
    streams = made.residual.double()
    pre, post, comb = weights_of(streams, wide)
    y = torch.einsum("mi,mic->mc", pre, streams)
    input_error = float((made.layer_input.double() - y).abs().max() / y.abs().max())
    pairs = ((made.post.reshape(post.shape), post), (made.comb, comb))
    return input_error, max(float((got.double() - want).abs().max()) for got, want in pairs)


def bandwidth() -> float:
    """Bytes a second of a copy of 1 GiB, both directions counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds: float = do_bench_cudagraph(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() / (milliseconds * 1e-3)


def bytes_moved(inputs: Inputs) -> int:
    """What must be read and written at least once."""
    read = sum(t.numel() * t.element_size() for t in inputs)
    written = sum(t.numel() * t.element_size() for t in (inputs.residual, inputs.x, inputs.post, inputs.comb))
    return read + written


def measure(
    makers: dict[str, Callable[[], Step]], tokens: int, hidden: int, dtype: torch.dtype, bytes_per_second: float
) -> list[Measurement]:
    results = []
    for name, make in makers.items():
        step = make()
        inputs = fresh(tokens, hidden, dtype)
        input_error, coefficient_error = errors(inputs, step(inputs))

        def call(step: Step = step, inputs: Inputs = inputs) -> None:
            step(inputs)

        milliseconds: float = do_bench_cudagraph(call, return_mode="median")
        results.append(
            Measurement(
                implementation=name,
                hidden=hidden,
                tokens=tokens,
                dtype=str(dtype).removeprefix("torch."),
                microseconds=milliseconds * 1e3,
                floor_microseconds=bytes_moved(inputs) / bytes_per_second * 1e6,
                input_error=input_error,
                coefficient_error=coefficient_error,
            )
        )
    return results


def speed_table(measurements: list[Measurement]) -> list[str]:
    """Markdown: a row per size, a column per implementation, the floor, and how often ours fits into the others."""
    names = list(dict.fromkeys(m.implementation for m in measurements))
    sizes: dict[tuple[int, int], dict[str, Measurement]] = {}
    for m in measurements:
        sizes.setdefault((m.hidden, m.tokens), {})[m.implementation] = m
    others = [name for name in names if name != "ours"]
    heads = [*names, "floor", *(f"{name} / ours" for name in others)]
    lines = [f"| C, M | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for (hidden, tokens), by_name in sizes.items():
        own = by_name["ours"]
        cells = [f"{by_name[name].microseconds:.2f}" for name in names] + [f"{own.floor_microseconds:.2f}"]
        cells += [f"{by_name[name].microseconds / own.microseconds:.1f}" for name in others]
        lines.append(f"| {hidden}, {tokens} | {' | '.join(cells)} |")
    return lines


def error_table(measurements: list[Measurement]) -> list[str]:
    lines = ["| | layer input, relative | post and comb |", "|---|---|---|"]
    for name in dict.fromkeys(m.implementation for m in measurements):
        own = [m for m in measurements if m.implementation == name]
        worst = max(m.input_error for m in own), max(m.coefficient_error for m in own)
        lines.append(f"| {name} | {worst[0]:.2e} | {worst[1]:.2e} |")
    return lines


def resources() -> list[str]:
    """Registers, spills and shared memory of every build of the kernels that this process launched."""
    lines = ["| kernel | warps | registers a thread | spills | shared bytes |", "|---|---|---|---|---|"]
    for function in (kernel._post_kernel, kernel._pre_kernel):
        builds = function.device_caches[torch.cuda.current_device()][0].values()
        used = {(b.metadata.num_warps, b.n_regs, b.n_spills, b.metadata.shared) for b in builds}
        lines += [f"| {function.__name__} | {' | '.join(map(str, row))} |" for row in sorted(used)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the fused mHC step against its peers on this GPU.")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="batch sizes")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/mhc.py: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2

    dtype: torch.dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    copied = bandwidth()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, {arguments.dtype}, copies at {copied / 1e12:.2f} TB/s")
    makers = implementations()
    measurements = []
    for hidden in HIDDEN:
        for tokens in arguments.tokens:
            measurements += measure(makers, tokens, hidden, dtype, copied)
    print("", "## mHC post, coefficients, Sinkhorn, pre, microseconds", *speed_table(measurements), sep="\n")
    print("", *error_table(measurements), "", *resources(), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(m) for m in measurements], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
