"""Decodes with the real sglang and different kernels of GemmaRMSNorm, under CUDA graphs: tokens and speed.

    python -m benchmarks.norm_engine [--model qwen3-next|qwen3.5] [--form NAME...] [--batch 1 16 64] [--json out.json]

Each form runs in one process, which decodes every batch `--repetitions` times after one untimed run:

- native: `forward_native`, which is what ROCm gets through 0.5.9, and in 0.5.12 without aiter and vLLM;
- sgl_kernel: the fused CUDA op that upstream runs on NVIDIA, and no AMD GPU has;
- ours: `gemma-rmsnorm`, installed as in an AMD process;
- all: everything that applies together: that, `greedy-sampler`, and on qwen3.5 `qwen3_5-alt-stream` with all three of
  its variables;
- control: ours, with the weight where 1 + weight belongs. It must decode other tokens, or equal ones would say nothing.

The weights make the right tokens stand out (`benchmarks.engine`), so every form but the control must decode the very
tokens of the first; exits with status 1 otherwise.

Needs an NVIDIA GPU, sglang 0.5.12 or 0.5.9 and what it imports, for sgl_kernel its kernel package; exits with status 2
without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engine import (
    STREAM_VARIABLES,
    Served,
    distinct_tokens,
    install,
    report,
    same_tokens,
    serve,
    spawn,
    summary,
)
from benchmarks.engine_models import MODELS

_CONTROL = "control"
_FORMS = ("native", "sgl_kernel", "ours", "all", _CONTROL)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.norm_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=list(MODELS), default="qwen3-next")
    parser.add_argument("--form", choices=_FORMS, nargs="+", default=list(_FORMS), help="native is the base of ratios")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repetitions", type=int, default=7, help="timed decodes of each batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=_FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        prepare = partial(_prepare, options.child, options.model)
        report(serve(options.model, options.batch, options.repetitions, prepare))
        return 0
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        print("python -m benchmarks.norm_engine: torch sees no NVIDIA GPU on this machine", file=sys.stderr)
        return 2
    runs: dict[str, Served] = {}
    for form in options.form:
        runs[form] = spawn(
            "benchmarks.norm_engine", form, options.model, options.batch, options.repetitions, _variables(form)
        )
        print(f"{form}: {runs[form]['norms']}, streams {runs[form]['streams']}", file=sys.stderr, flush=True)
    gpu = torch.cuda.get_device_name()
    first = next(iter(runs.values()))
    print(f"{gpu}, torch {torch.__version__}, sglang {first['sglang']}, {options.model}")
    print(*table(runs, options.batch), sep="\n")
    if options.json:
        document = {"schema": 1, "gpu": gpu, "torch": torch.__version__, "model": options.model, "runs": runs}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    wrong = wrong_tokens(runs)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def wrong_tokens(runs: Mapping[str, Served]) -> list[str]:
    """Forms whose tokens are not as they must be, compared with the first; the control's must be others."""
    base, *others = runs
    return [
        f"{form} decoded {'the' if equal else 'other'} tokens {'that' if equal else 'than'} {base} decoded"
        for form in others
        if (equal := runs[form]["tokens"] == runs[base]["tokens"]) == (form == _CONTROL)
    ]


def table(runs: Mapping[str, Served], batches: Sequence[int]) -> list[str]:
    """Markdown: the first run is what the ratios and the tokens of the others are compared with."""
    base = next(iter(runs))
    lines = [
        f"| batch | form | tokens/s: median (lowest - highest) | ratio to {base} | equal sequences |",
        "|---" * 5 + "|",
    ]
    for batch in batches:
        slowest = statistics.median(runs[base]["rates"][str(batch)])
        for form, served in runs.items():
            rates = served["rates"][str(batch)]
            equal, sequences = same_tokens(runs[base], served, batch)
            ratio = statistics.median(rates) / slowest
            lines.append(f"| {batch} | {form} | {summary(rates).strip()} | {ratio:.3f} | {equal} of {sequences} |")
    for form, served in runs.items():
        repeats = "the same tokens every time" if served["repeats"] else "NOT the same tokens every time"
        norms = ", ".join(f"{count} x {name}" for name, count in served["norms"].items())
        lead = min(served["leads"].values())
        lines.append(f"- {form}: {norms}; {repeats}; distinct tokens {distinct_tokens(served)}; least lead {lead:.2f}")
    return lines


def _variables(form: str) -> dict[str, str]:
    return dict.fromkeys(STREAM_VARIABLES, "1") if form == "all" else {}


def _prepare(form: str, model: str) -> None:
    """In the child, before the model is built."""
    if form == "native":
        _dispatch(lambda norm: norm.forward_native)
    elif form != "sgl_kernel":
        from patches import gemma_rmsnorm

        install(gemma_rmsnorm.PATCH)
        _dispatch(_without_the_one if form == _CONTROL else lambda norm: norm.forward_hip)
    if form == "all":
        from patches import greedy_sampler, qwen3_5_alt_stream

        install(greedy_sampler.PATCH)
        if model == "qwen3.5":
            install(qwen3_5_alt_stream.PATCH)


def _dispatch(method_of: Callable[[Any], Callable[..., Any]]) -> None:
    """Every GemmaRMSNorm runs `method_of(norm)`, as it would on the platform that dispatches to it."""
    import wrapt

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        instance._forward_method = method_of(instance)

    wrapt.wrap_function_wrapper("sglang.srt.layers.layernorm", "GemmaRMSNorm.__init__", wrapper)


def _without_the_one(norm: Any) -> Callable[..., Any]:
    from patches.kernels.gemma_rmsnorm import gemma_rmsnorm

    def forward_without_the_one(x: Any, residual: Any = None, post_residual_addition: Any = None) -> Any:
        return gemma_rmsnorm(x, norm.weight.data - 1, norm.variance_epsilon, residual, post_residual_addition)

    return forward_without_the_one


if __name__ == "__main__":
    sys.exit(main())
