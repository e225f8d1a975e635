"""Decodes with the real sglang 0.5.12, Qwen3.5's alternate streams off and on, under CUDA graphs: tokens and speed.

    python -m benchmarks.dual_stream_engine [--batch 1 16 64] [--rounds 2] [--json out.json]

The model has Qwen3.5's MoE shape (`benchmarks.engine_models`), with weights drawn so that its tokens vary from row to
row and step to step. Every mode is run in processes of its own, in turn, `--rounds` times; the tokens of all must
agree. The streams that the release makes on CUDA are taken away; "on" then applies `qwen3_5-alt-stream`, as an AMD
process would.

What it shows of AMD: that the patch serves the same tokens under graph replay. The gain is this GPU's.

Needs a CUDA GPU, sglang 0.5.12 and what it imports; exits with status 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

from benchmarks.engine import STREAM_VARIABLES, distinct_tokens, install, report, serve, spawn, summary

_MODEL = "qwen3.5"
_MODES = {"off": {}, "on": dict.fromkeys(STREAM_VARIABLES, "1"), "MoE only": {STREAM_VARIABLES[0]: "1"}}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dual_stream_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2, help="processes of each mode")
    parser.add_argument("--repetitions", type=int, default=1, help="timed decodes of a process, after one untimed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=list(_MODES), help=argparse.SUPPRESS)
    parser.add_argument("--model", default=_MODEL, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        report(serve(options.model, options.batch, options.repetitions, partial(_prepare, options.child)))
        return 0
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        print("needs an NVIDIA GPU", file=sys.stderr)
        return 2
    runs = []
    for _ in range(options.rounds):
        for mode, variables in _MODES.items():
            served = spawn("benchmarks.dual_stream_engine", mode, _MODEL, options.batch, options.repetitions, variables)
            runs.append((mode, served))
    gpu, first = torch.cuda.get_device_name(), runs[0][1]
    if options.json:
        document = {
            "gpu": gpu,
            "torch": torch.__version__,
            "runs": [{"mode": mode, **served} for mode, served in runs],
        }
        options.json.write_text(json.dumps(document, indent=1))
    agree = all(served["tokens"] == first["tokens"] and served["repeats"] for _, served in runs)
    print(f"{gpu}, torch {torch.__version__}, sglang {first['sglang']}")
    print(f"streams held, by mode: { {mode: served['streams'] for mode, served in runs} }")
    print(f"tokens of all {len(runs)} runs agree: {agree} (distinct tokens a batch: {distinct_tokens(first)})")
    print("batch  mode      tokens/s (median; lowest - highest of the runs)   ratio to off")
    for batch in map(str, options.batch):
        rates = {m: [rate for mode, run in runs if mode == m for rate in run["rates"][batch]] for m in _MODES}
        for mode, seen in rates.items():
            ratio = statistics.median(seen) / statistics.median(rates["off"])
            print(f"{batch:>5}  {mode:<8}  {summary(seen)}   {ratio:.3f}")
    return 0 if agree else 1


def _prepare(mode: str) -> None:
    if _MODES[mode]:
        from patches.qwen3_5_alt_stream import PATCH

        install(PATCH)


if __name__ == "__main__":
    sys.exit(main())
