"""Times the fused Gemma RMSNorm against every other implementation that this machine has.

    python benchmarks/gemma_rmsnorm.py [--dtype bfloat16|float16] [--json out.json]

Two cases are timed: residual add + norm over the hidden size, once per half layer, and the norm alone over each
attention head. Compared are: this project's kernel; ``GemmaRMSNorm.forward_native``'s operations, which is what SGLang
runs on ROCm without a fused kernel; the same under ``torch.compile``; and, where they can be imported, SGLang's
Triton kernel (0.5.17 and later) and Liger's.

Times are medians of graph replays (``triton.testing.do_bench_cudagraph``), in microseconds, so launch overhead on the
host is not in them. Replays reuse one set of buffers, as a layer finds its input in the cache that the layer before
wrote; with tensors larger than the last-level cache, memory is what is timed. "of copy" is the rate at which the
kernel moves its inputs and outputs, over the rate of a large device copy; cached tensors can pass 100 %.
Errors are against a float64 norm of the rounded sum: the largest difference, and the share of elements that are not
the nearest value of the dtype.

Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patches.kernels.gemma_rmsnorm import gemma_rmsnorm

EPS = 1e-6
HIDDEN_SIZES = (2048, 4096, 5120, 7168)
TOKENS = (1, 64, 256, 2048, 8192)
HEAD_SIZES = (128, 256)
HEADS = (32, 2048, 65536)  # tokens x heads of a token
COPY_BYTES = 1 << 30

Norm = Callable[[Tensor, Tensor, "Tensor | None"], "Tensor | tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class Measurement:
    """One implementation at one size. Times in microseconds, errors in the unit of y."""

    implementation: str
    hidden_size: int
    rows: int
    residual: bool
    dtype: str
    microseconds: float
    fraction_of_copy: float
    max_error: float
    not_nearest: float


def ours(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    return gemma_rmsnorm(x, weight, EPS, residual)


def native(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """The operations of SGLang's ``GemmaRMSNorm.forward_native``."""
    dtype = x.dtype
    if residual is not None:
        x = residual = x + residual
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + EPS)
    y = (wide * (1.0 + weight.float())).to(dtype)
    return y if residual is None else (y, residual)


def compiled_native() -> Norm:
    """``native``, to be specialised anew: torch.compile does best when every size is a constant."""
    torch._dynamo.reset()
    return torch.compile(native, dynamic=False)


def sglang_triton() -> Norm | None:
    try:
        kernels = importlib.import_module("sglang.kernels.ops.layernorm.minimax_m3_rmsnorm")
    except ImportError:
        return None

    def norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            y: Tensor = kernels.gemma_rmsnorm(x, weight, EPS)
            return y
        outputs: tuple[Tensor, Tensor] = kernels.gemma_fused_add_rmsnorm(x, residual, weight, EPS)
        return outputs

    return norm


def liger() -> Norm | None:
    try:
        norm_kernel = importlib.import_module("liger_kernel.ops.rms_norm")
        add_norm_kernel = importlib.import_module("liger_kernel.ops.fused_add_rms_norm")
    except ImportError:
        return None

    def norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            y: Tensor = norm_kernel.rms_norm_forward(x, weight, EPS, 1.0, "gemma", None)[0]
            return y
        y, total, *_ = add_norm_kernel.fused_add_rms_norm_forward(x, residual, weight, EPS, 1.0, "gemma")
        return y, total

    return norm


def implementations() -> dict[str, Callable[[], Norm | None]]:
    return {
        "ours": lambda: ours,
        "native": lambda: native,
        "torch.compile": compiled_native,
        "sglang": sglang_triton,
        "liger": liger,
    }


def copy_bytes_per_second() -> float:
    """Rate of a device-to-device copy too large for any cache, counting bytes read and bytes written."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds: float = do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * COPY_BYTES / (milliseconds * 1e-3)


def errors(y: Tensor, x: Tensor, weight: Tensor, residual: Tensor | None) -> tuple[float, float]:
    total = (x if residual is None else x + residual).double()
    want = total * torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + EPS) * (1.0 + weight.double())
    return float((y.double() - want).abs().max()), float((y != want.to(y.dtype)).double().mean())


def measure(hidden_size: int, rows: int, residual: bool, dtype: torch.dtype, copy_rate: float) -> list[Measurement]:
    """Every implementation at one size, over the same fresh random inputs."""
    x, addend = (torch.randn(rows, hidden_size, device="cuda").to(dtype) for _ in range(2))
    weight = (torch.randn(hidden_size, device="cuda") * 0.2).to(dtype)
    residual_in = addend if residual else None
    moved = (4 if residual else 2) * x.nbytes + weight.nbytes
    results = []
    for name, make in implementations().items():
        norm = make()
        if norm is None:
            continue
        outputs = norm(x, weight, residual_in)
        max_error, not_nearest = errors(outputs if isinstance(outputs, Tensor) else outputs[0], x, weight, residual_in)

        def call(norm: Norm = norm) -> None:
            norm(x, weight, residual_in)

        milliseconds: float = do_bench_cudagraph(call, return_mode="median")
        results.append(
            Measurement(
                implementation=name,
                hidden_size=hidden_size,
                rows=rows,
                residual=residual,
                dtype=str(dtype).removeprefix("torch."),
                microseconds=milliseconds * 1e3,
                fraction_of_copy=moved / (milliseconds * 1e-3) / copy_rate,
                max_error=max_error,
                not_nearest=not_nearest,
            )
        )
    return results


def speed_table(measurements: list[Measurement]) -> list[str]:
    """Markdown: a row per size, a column per implementation, and how near ours is to a copy."""
    names = list(dict.fromkeys(m.implementation for m in measurements))
    sizes: dict[tuple[int, int], dict[str, Measurement]] = {}
    for measurement in measurements:
        sizes.setdefault((measurement.hidden_size, measurement.rows), {})[measurement.implementation] = measurement
    lines = [f"| N, M | {' | '.join(names)} | ours, of copy |", "|---" * (len(names) + 2) + "|"]
    for (hidden_size, rows), by_name in sizes.items():
        times = " | ".join(f"{by_name[name].microseconds:.2f}" for name in names)
        lines.append(f"| {hidden_size}, {rows} | {times} | {by_name['ours'].fraction_of_copy:.0%} |")
    return lines


def error_table(measurements: list[Measurement]) -> list[str]:
    lines = ["| | largest error | not nearest |", "|---|---|---|"]
    for name in dict.fromkeys(m.implementation for m in measurements):
        own = [m for m in measurements if m.implementation == name]
        not_nearest = statistics.fmean(m.not_nearest for m in own)
        lines.append(f"| {name} | {max(m.max_error for m in own):.2e} | {not_nearest:.3%} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the fused Gemma RMSNorm against its peers on this GPU.")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gemma_rmsnorm.py: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2

    dtype: torch.dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    copy_rate = copy_bytes_per_second()
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}, copy {copy_rate / 1e12:.2f} TB/s, {arguments.dtype}")
    cases = {
        "Residual add + norm, microseconds (N = hidden size, M = tokens)": (HIDDEN_SIZES, TOKENS, True),
        "Norm alone, microseconds (N = head size, M = tokens x heads)": (HEAD_SIZES, HEADS, False),
    }
    everything = []
    for title, (lengths, counts, residual) in cases.items():
        measurements = [m for n in lengths for rows in counts for m in measure(n, rows, residual, dtype, copy_rate)]
        print("", f"## {title}", *speed_table(measurements), "", *error_table(measurements), sep="\n", flush=True)
        everything += measurements
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(m) for m in everything], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
