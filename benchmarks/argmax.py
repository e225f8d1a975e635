"""Times the greedy argmax against ``torch.argmax`` and against a copy of as many bytes.

    python benchmarks/argmax.py [--json out.json]

Times are medians of graph replays (``triton.testing.do_bench_cudagraph``), in microseconds, so launch overhead on the
host is not in them. Replays read one set of logits, as a sampler reads what the language-model head has just written;
logits larger than the last-level cache come from memory.

Two rates are given for a row of the table. "of copy" compares with a copy on the device that moves as many bytes, half
of them read and half written, timed the same way: what a kernel of that size can reach. "of large copy" compares with
a copy of 1 GiB, whose start costs nothing: the memory's own limit. The driver copies some sizes slowly (151666 columns
on an H200), which shows as far more than 100 % "of copy". aiter's kernel is timed where it can be imported;
its answers are not compared, since it can leave the vocabulary.

Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patches.kernels import argmax as kernel
from patches.kernels.argmax import greedy_argmax

COPY_BYTES = 1 << 30
CASES = [
    *((batch, 151936, torch.bfloat16) for batch in (1, 2, 4, 8, 16, 64, 128, 160, 192, 256, 320, 512)),
    *((batch, 151936, torch.float32) for batch in (1, 8, 64, 128, 160, 320)),
    (256, 248320, torch.float32),
    # 16 bytes do not divide the rows of these.
    *((batch, 151666, torch.float32) for batch in (1, 8, 128)),
    (1024, 50257, torch.bfloat16),
]


@dataclass(frozen=True)
class Measurement:
    """One size. Times in microseconds; aiter's is None where there is no aiter."""

    batch: int
    vocab: int
    dtype: str
    ours: float
    torch: float
    aiter: float | None
    copy: float
    of_large_copy: float


def microseconds(call: Callable[[], object]) -> float:
    milliseconds: float = do_bench_cudagraph(call, return_mode="median")
    return milliseconds * 1e3


def large_copy_bytes_per_second() -> float:
    """Rate of a device-to-device copy too large for any cache, counting bytes read and bytes written."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds: float = do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * COPY_BYTES / (milliseconds * 1e-3)


def aiter_greedy_sample() -> Callable[[Tensor, Tensor], None] | None:
    try:
        found: Callable[[Tensor, Tensor], None] = importlib.import_module("aiter").greedy_sample
    except (ImportError, AttributeError):
        return None
    return found


def measure(batch: int, vocab: int, dtype: torch.dtype, large_copy_rate: float) -> Measurement:
    """Fresh random logits; ours must give torch's answer into a poisoned output before it is timed."""
    logits = torch.randn(batch, vocab, device="cuda").to(dtype)
    ids = torch.full((batch,), -1, device="cuda")
    if not torch.equal(greedy_argmax(logits, ids), torch.argmax(logits, -1)):
        raise AssertionError(f"greedy_argmax differs from torch.argmax at {batch} x {vocab}, {dtype}")
    half = torch.empty(logits.nbytes // 2, dtype=torch.uint8, device="cuda")
    other_half = torch.empty_like(half)
    sample = aiter_greedy_sample()
    tokens = torch.empty(batch, dtype=torch.int32, device="cuda")
    ours = microseconds(lambda: greedy_argmax(logits))
    return Measurement(
        batch=batch,
        vocab=vocab,
        dtype=str(dtype).removeprefix("torch."),
        ours=ours,
        torch=microseconds(lambda: torch.argmax(logits, -1)),
        aiter=None if sample is None else microseconds(lambda: sample(tokens, logits)),
        copy=microseconds(lambda: other_half.copy_(half)),
        of_large_copy=logits.nbytes / (ours * 1e-6) / large_copy_rate,
    )


def table(measurements: list[Measurement]) -> list[str]:
    lines = ["| B, V, dtype | MB | ours | torch | aiter | torch / ours | of copy | of large copy |", "|---" * 8 + "|"]
    for m in measurements:
        megabytes = m.batch * m.vocab * getattr(torch, m.dtype).itemsize / 1e6
        aiter = "-" if m.aiter is None else f"{m.aiter:.2f}"
        lines.append(
            f"| {m.batch}, {m.vocab}, {m.dtype} | {megabytes:.1f} | {m.ours:.2f} | {m.torch:.2f} | {aiter} "
            f"| {m.torch / m.ours:.2f} | {m.copy / m.ours:.0%} | {m.of_large_copy:.0%} |"
        )
    return lines


def resources() -> list[str]:
    """Registers per thread and spilled bytes of every build that the cases above made."""
    lines = ["| kernel | threads | registers | spills |", "|---|---|---|---|"]
    device = torch.cuda.current_device()
    _, warp_size = kernel._device(device)
    for function in (kernel._argmax_kernel, kernel._finish_kernel):
        for build in function.device_caches[device][0].values():
            threads = build.metadata.num_warps * warp_size
            lines.append(f"| {build.name} | {threads} | {build.n_regs} | {build.n_spills} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the greedy argmax against its peers on this GPU.")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/argmax.py: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2

    torch.manual_seed(0)
    rate = large_copy_bytes_per_second()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy of 1 GiB {rate / 1e12:.2f} TB/s")
    measurements = [measure(*case, rate) for case in CASES]
    print("", "## Greedy argmax, microseconds (B = rows, V = columns)", *table(measurements), sep="\n")
    print("", "## Resources", *resources(), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(m) for m in measurements], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
