"""Times the fused attention prologue of Qwen3-VL decode against the stepwise path.

    python benchmarks/qk_norm_mrope.py [--dtype bfloat16|float16] [--json out.json]

Compared are: this project's kernel; the operations that SGLang runs on ROCm without a fused kernel (RMSNorm's and
MRotaryEmbedding's ``forward_native``, then the cache write); and the same under ``torch.compile``.

Times are medians of graph replays (``triton.testing.do_bench_cudagraph``), in microseconds, so launch overhead on the
host is not in them. Every implementation starts from fresh random inputs and a cache full of NaN, which it must replace
in the slots of the batch and nowhere else. Errors are against the definition, a norm rounded to 16 bits and a rotation
in float64: the largest difference, and the share of elements that are not the nearest value of the dtype. Registers and
spills of every build of the kernel are printed last.

Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from triton.testing import do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry

TOKENS = (1, 16, 64, 256)
SLOTS = 4096
MAX_POSITION = 32768
# (query heads, key/value heads) of Qwen3-VL 8B, of 8B on one of four GPUs, and of 32B
HEADS = ((32, 8), (8, 2), (64, 8))
HEAD_SIZE = 128
SECTIONS = (24, 20, 20)


class Inputs(NamedTuple):
    qkv: Tensor
    q_weight: Tensor
    k_weight: Tensor
    cos_sin: Tensor
    positions: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor


Prologue = Callable[[Geometry, Inputs], Tensor]


@dataclass(frozen=True)
class Measurement:
    """One implementation at one size. Time in microseconds, errors over queries and keys."""

    implementation: str
    num_q_heads: int
    num_kv_heads: int
    tokens: int
    dtype: str
    microseconds: float
    max_error: float
    not_nearest: float


def fresh(geometry: Geometry, tokens: int, dtype: torch.dtype) -> Inputs:
    """Random inputs, positions that differ on every axis, and caches of NaN."""
    d = geometry.head_size

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    angle = torch.outer(torch.arange(MAX_POSITION), 5e6 ** -(torch.arange(0, d, 2) / d))
    cache = torch.full((SLOTS, geometry.num_kv_heads, d), float("nan"), dtype=dtype, device="cuda")
    return Inputs(
        qkv=randn(tokens, geometry.row_size),
        q_weight=1 + randn(d) * 0.2,
        k_weight=1 + randn(d) * 0.2,
        cos_sin=torch.cat([angle.cos(), angle.sin()], 1).to("cuda", dtype),
        positions=torch.randint(0, MAX_POSITION, (3, tokens), device="cuda"),
        k_cache=cache,
        v_cache=cache.clone(),
        slots=torch.randperm(SLOTS, device="cuda")[:tokens],
    )


def ours(geometry: Geometry, inputs: Inputs) -> Tensor:
    return kernel.qk_norm_mrope(geometry, *inputs)


def split(geometry: Geometry, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = [geometry.num_q_heads, geometry.num_kv_heads, geometry.num_kv_heads]
    q, k, v = torch.split(qkv.view(qkv.shape[0], -1, geometry.head_size), counts, 1)
    return q, k, v


def mixed(geometry: Geometry, table: Tensor) -> Tensor:
    """``(3, tokens, head_size / 2)`` to ``(tokens, 1, head_size / 2)``: which axis each frequency takes."""
    chosen = table[0].clone()
    for axis in (1, 2):
        taken = slice(axis, 3 * geometry.mrope_section[axis], 3)
        chosen[:, taken] = table[axis, :, taken]
    return chosen[:, None]


def stepwise(geometry: Geometry, inputs: Inputs) -> Tensor:
    """The operations of SGLang's unfused path."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + geometry.eps)
        return (wide * weight).to(x.dtype)

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k, v = split(geometry, inputs.qkv)
    q, k = norm(q, inputs.q_weight), norm(k, inputs.k_weight)
    cos, sin = (mixed(geometry, table) for table in inputs.cos_sin[inputs.positions].chunk(2, -1))
    q, k = rotate(q), rotate(k)
    inputs.k_cache[inputs.slots] = k
    inputs.v_cache[inputs.slots] = v
    return q.reshape(q.shape[0], -1)


def compiled_stepwise() -> Prologue:
    """``stepwise``, to be specialised anew: torch.compile does best when every size is a constant."""
    torch._dynamo.reset()
    return torch.compile(stepwise, dynamic=False)


def implementations() -> dict[str, Callable[[], Prologue]]:
    return {"ours": lambda: ours, "stepwise": lambda: stepwise, "torch.compile": compiled_stepwise}


def exact(geometry: Geometry, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Queries and keys by the definition, in float64."""

    def rotated(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.double()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + geometry.eps) * weight.double()
        a, b = wide.to(x.dtype).double().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k, _ = split(geometry, inputs.qkv)
    cos, sin = (mixed(geometry, table) for table in inputs.cos_sin[inputs.positions].double().chunk(2, -1))
    return rotated(q, inputs.q_weight), rotated(k, inputs.k_weight)


def errors(geometry: Geometry, inputs: Inputs, q: Tensor) -> tuple[float, float]:
    """Over queries and cached keys. Raises ValueError if a value was changed, or a slot is not as it should be."""
    want_q, want_k = exact(geometry, inputs)
    if not torch.equal(inputs.v_cache[inputs.slots], split(geometry, inputs.qkv)[2]):
        raise ValueError("the cached values are not the projection's")
    others = torch.ones(SLOTS, dtype=torch.bool, device="cuda").index_fill_(0, inputs.slots, False)
    if not (inputs.k_cache[others].isnan().all() and inputs.v_cache[others].isnan().all()):
        raise ValueError("a slot outside the batch was written")
    got = torch.cat([q.flatten(), inputs.k_cache[inputs.slots].flatten()])
    want = torch.cat([want_q.flatten(), want_k.flatten()])
    return float((got.double() - want).abs().max()), float((got != want.to(got.dtype)).double().mean())


def measure(geometry: Geometry, tokens: int, dtype: torch.dtype) -> list[Measurement]:
    results = []
    for name, make in implementations().items():
        prologue = make()
        inputs = fresh(geometry, tokens, dtype)
        max_error, not_nearest = errors(geometry, inputs, prologue(geometry, inputs))

        def call(prologue: Prologue = prologue, inputs: Inputs = inputs) -> None:
            prologue(geometry, inputs)

        milliseconds: float = do_bench_cudagraph(call, return_mode="median")
        results.append(
            Measurement(
                implementation=name,
                num_q_heads=geometry.num_q_heads,
                num_kv_heads=geometry.num_kv_heads,
                tokens=tokens,
                dtype=str(dtype).removeprefix("torch."),
                microseconds=milliseconds * 1e3,
                max_error=max_error,
                not_nearest=not_nearest,
            )
        )
    return results


def speed_table(measurements: list[Measurement]) -> list[str]:
    """Markdown: a row per size, a column per implementation, and how often ours fits into the stepwise time."""
    names = list(dict.fromkeys(m.implementation for m in measurements))
    sizes: dict[tuple[int, int, int], dict[str, Measurement]] = {}
    for m in measurements:
        sizes.setdefault((m.num_q_heads, m.num_kv_heads, m.tokens), {})[m.implementation] = m
    lines = [f"| Hq, Hkv, T | {' | '.join(names)} | stepwise / ours |", "|---" * (len(names) + 2) + "|"]
    for (q_heads, kv_heads, tokens), by_name in sizes.items():
        times = " | ".join(f"{by_name[name].microseconds:.2f}" for name in names)
        ratio = by_name["stepwise"].microseconds / by_name["ours"].microseconds
        lines.append(f"| {q_heads}, {kv_heads}, {tokens} | {times} | {ratio:.1f} |")
    return lines


def error_table(measurements: list[Measurement]) -> list[str]:
    lines = ["| | largest error | not nearest |", "|---|---|---|"]
    for name in dict.fromkeys(m.implementation for m in measurements):
        own = [m for m in measurements if m.implementation == name]
        not_nearest = statistics.fmean(m.not_nearest for m in own)
        lines.append(f"| {name} | {max(m.max_error for m in own):.2e} | {not_nearest:.3%} |")
    return lines


def resources() -> list[str]:
    """Registers, spills and shared memory of every build of the kernel that this process launched."""
    builds = kernel._qk_norm_mrope_kernel.device_caches[torch.cuda.current_device()][0].values()
    used = {(b.metadata.num_warps, b.n_regs, b.n_spills, b.metadata.shared) for b in builds}
    lines = ["| warps | registers a thread | spills | shared bytes |", "|---|---|---|---|"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in sorted(used)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the fused attention prologue against its peers on this GPU.")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/qk_norm_mrope.py: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2

    dtype: torch.dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.dtype}, D {HEAD_SIZE}")
    measurements = []
    for q_heads, kv_heads in HEADS:
        geometry = Geometry(q_heads, kv_heads, HEAD_SIZE, SECTIONS, interleaved=True, neox=True, eps=1e-6)
        measurements += [m for tokens in TOKENS for m in measure(geometry, tokens, dtype)]
    print("", "## QKV split, QK-norm, mRoPE, cache write, microseconds", *speed_table(measurements), sep="\n")
    print("", *error_table(measurements), "", *resources(), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(m) for m in measurements], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
