"""The real sglang 0.5.12 in a process of its own: load, capture CUDA graphs, prefill, decode.

It runs on an NVIDIA GPU, where this release makes alternate streams by itself: every process first takes them away,
which is what ROCm gets. Patches are then installed as an AMD process would install them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.engine_models import MODELS
from overlay.model import Patch

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 128, 128
#: What makes alternate streams; a process gets those that its form names and no other.
STREAM_VARIABLES = ("SGLANG_ALT_STREAM", "SGLANG_GDN_QKVZ_BA_ALT_STREAM", "SGLANG_QK_NORM_ALT_STREAM")
_RESULT = "RESULT "


class Served(TypedDict):
    """What a process reports. Keys of the mappings are batch sizes, as JSON has them."""

    sglang: str
    streams: dict[str, int]
    """modules that hold an alternate stream, by class"""
    norms: dict[str, int]
    """GemmaRMSNorm instances by the function they run"""
    tokens: dict[str, list[list[int]]]
    rates: dict[str, list[float]]
    """decoded tokens a second of each timed repetition"""
    repeats: bool
    """whether every repetition decoded the same tokens"""


def spawn(
    module: str, form: str, model: str, batches: Sequence[int], repetitions: int, variables: Mapping[str, str]
) -> Served:
    """What `python -m MODULE --child FORM` serves, in an environment without other stream variables.

    Raises SystemExit with the end of its output if it does not finish.
    """
    environ = {name: value for name, value in os.environ.items() if name not in STREAM_VARIABLES}
    command = [sys.executable, "-m", module, "--child", form, "--model", model, "--repetitions", str(repetitions)]
    done = subprocess.run(
        [*command, "--batch", *map(str, batches)],
        env={**environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if not lines:
        raise SystemExit(f"{form} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    served: Served = json.loads(lines[-1].removeprefix(_RESULT))
    return served


def report(served: Served) -> None:
    """In the child: hand the result to `spawn`."""
    print(_RESULT + json.dumps(served), flush=True)


def serve(model: str, batches: Sequence[int], repetitions: int, prepare: Callable[[], None]) -> Served:
    """In the child: build the model, capture, decode every batch. `prepare` runs before the model is built."""
    import sglang
    import torch
    from sglang import bench_one_batch
    from sglang.srt.server_args import PortArgs, ServerArgs, set_global_server_args_for_scheduler

    without_streams(model)
    prepare()
    vars(bench_one_batch)["get_tokenizer"] = lambda *_args, **_kwargs: None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODELS[model]))
        arguments = ServerArgs(
            model_path=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            attention_backend="triton",
            sampling_backend="pytorch",
            grammar_backend="none",
            disable_piecewise_cuda_graph=True,
            disable_radix_cache=True,
            disable_overlap_schedule=True,
            cuda_graph_bs=list(batches),
            max_running_requests=max(batches),
            mem_fraction_static=0.6,
        )
        bench_one_batch._set_envs_and_config(arguments)
        set_global_server_args_for_scheduler(arguments)
        bench_one_batch.initialize_moe_config(arguments)
        runner, _ = bench_one_batch.load_model(arguments, PortArgs.init_new(arguments), 0, 0)
    network = runner.torch_runner.model
    _draw(network)
    served = Served(
        sglang=sglang.__version__,
        streams=_count(type(m).__name__ for m in network.modules() if getattr(m, "alt_stream", None) is not None),
        norms=_count(_forward_of(m) for m in network.modules() if type(m).__name__ == "GemmaRMSNorm"),
        tokens={},
        rates={},
        repeats=True,
    )
    for batch in batches:
        rows, rates = [], []
        for _ in range(repetitions + 1):
            decoded, rate = _decode(bench_one_batch, runner, batch)
            rows.append(decoded)
            rates.append(rate)
        served["tokens"][str(batch)] = rows[-1]
        served["rates"][str(batch)] = rates[1:]  # the first run is a warm-up
        served["repeats"] &= all(row == rows[0] for row in rows)
    torch.cuda.synchronize()
    return served


def without_streams(model: str) -> None:
    """Take away the streams that this release makes on CUDA, before patches make theirs."""
    import wrapt
    from sglang.srt.models import qwen3_5, qwen3_next

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        for module in instance.modules():
            if getattr(module, "alt_stream", None) is not None:
                module.alt_stream = None

    owner = qwen3_next if model == "qwen3-next" else qwen3_5
    name = "Qwen3NextModel" if model == "qwen3-next" else "Qwen3_5ForCausalLM"
    wrapt.wrap_function_wrapper(owner, f"{name}.__init__", wrapper)


def install(patch: Patch) -> None:
    """The variant of a patch whose images this release has, as the overlay puts it in place."""
    from overlay.install import Ledger
    from overlay.observer import Observer
    from overlay.source import installed_tree

    observer = Observer(installed_tree())
    (variant,) = [v for v in patch.variants if all(observer.observe(i.slot) in i.digests for i in v.images)]
    Ledger().install(patch.id, variant.targets)


def summary(rates: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(rates):9.1f} ({min(rates):.1f} - {max(rates):.1f})"


def same_tokens(a: Served, b: Served, batch: int) -> tuple[int, int]:
    """Sequences of a batch that are equal in both, of how many."""
    pairs = list(zip(a["tokens"][str(batch)], b["tokens"][str(batch)], strict=True))
    return sum(first == second for first, second in pairs), len(pairs)


def distinct_tokens(served: Served) -> dict[str, int]:
    """Different tokens by batch: one alone would say that the model has collapsed."""
    return {batch: len({token for row in rows for token in row}) for batch, rows in served["tokens"].items()}


def _count(names: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _forward_of(norm: Any) -> str:
    method = norm._forward_method
    return str(getattr(method, "__func__", method).__name__)


def _draw(network: Any) -> None:
    """Weights that keep the scale of the activations. Parameters of one value a head (decay, bias) stay as they are."""
    import torch

    generator = torch.Generator(device="cuda").manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.dim() >= 2 and weight.is_floating_point():
            weight.data.normal_(std=0.05 if "gate" in name else 0.02, generator=generator)


def _decode(bench: Any, runner: Any, batch: int) -> tuple[list[list[int]], float]:
    """Tokens [batch][NEW], and decoded tokens a second after the prefill."""
    import torch

    runner.torch_runner.req_to_token_pool.clear()
    runner.torch_runner.token_to_kv_pool_allocator.clear()
    prompts = torch.randint(1, 30000, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
    requests = bench.prepare_synthetic_inputs_for_latency_test(batch, PROMPT, prompts)
    following, _, state = runner.extend(requests)
    steps = [following]
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(NEW - 1):
        following, _ = runner.decode(following, state)
        steps.append(following)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    rows: list[list[int]] = torch.stack(steps, 1).tolist()
    return rows, batch * (NEW - 1) / seconds
