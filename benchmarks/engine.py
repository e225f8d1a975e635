"""The real sglang, 0.5.12 or 0.5.9, in a process of its own: load, capture CUDA graphs, prefill, decode.

It runs on an NVIDIA GPU, where 0.5.12 makes alternate streams by itself: every process first takes them away, which is
what ROCm gets. Patches are then installed as an AMD process would install them.

The weights are random, but made so that the right tokens are known and stand out: the head holds, for each token's
successor, the token's own embedding. A sequence so runs through a cycle of the whole vocabulary, however it is decoded,
while the 16 layers make up most of the hidden state whose direction decides. Rounding does not turn such a token; a
layer that computes something else does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
    leads: dict[str, float]
    """the least by which a decoded token's logit was ahead of the next one, in any step after the prefill"""
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
        wanted = {
            "model_path": folder,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "attention_backend": "triton",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_piecewise_cuda_graph": True,  # on by default where the release has it
            "disable_radix_cache": True,
            "disable_overlap_schedule": True,
            "cuda_graph_bs": list(batches),
            "max_running_requests": max(batches),
            "mem_fraction_static": 0.6,
        }
        known = {field.name for field in dataclasses.fields(ServerArgs)}
        arguments = ServerArgs(**{name: value for name, value in wanted.items() if name in known})
        bench_one_batch._set_envs_and_config(arguments)
        set_global_server_args_for_scheduler(arguments)
        bench_one_batch.initialize_moe_config(arguments)
        loaded, _ = bench_one_batch.load_model(arguments, PortArgs.init_new(arguments), 0, 0)
    runner = getattr(loaded, "torch_runner", loaded)  # wrapped from 0.5.12 on
    draw(runner.model)
    served = Served(
        sglang=sglang.__version__,
        streams=Counter(type(m).__name__ for m in runner.model.modules() if getattr(m, "alt_stream", None) is not None),
        norms=Counter(_forward_of(m) for m in _gemma_norms(runner.model)),
        tokens={},
        rates={},
        leads={},
        repeats=True,
    )
    for batch in batches:
        leads: list[float] = []
        rows, _ = _decode(bench_one_batch, runner, batch, leads)
        again = [_decode(bench_one_batch, runner, batch) for _ in range(repetitions)]
        served["tokens"][str(batch)] = rows
        served["rates"][str(batch)] = [rate for _, rate in again]
        served["leads"][str(batch)] = min(leads)
        served["repeats"] &= all(repeated == rows for repeated, _ in again)
    torch.cuda.synchronize()
    return served


def without_streams(model: str) -> None:
    """Take away the streams that this release makes on CUDA, before patches make theirs."""
    import wrapt

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        for module in instance.modules():
            if getattr(module, "alt_stream", None) is not None:
                module.alt_stream = None

    module, name = {
        "qwen3-next": ("qwen3_next", "Qwen3NextModel"),
        "qwen3.5": ("qwen3_5", "Qwen3_5ForCausalLM"),
    }[model]
    wrapt.wrap_function_wrapper(f"sglang.srt.models.{module}", f"{name}.__init__", wrapper)


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


def _forward_of(norm: Any) -> str:
    method = norm._forward_method
    return str(getattr(method, "__func__", method).__name__)


def _gemma_norms(network: Any) -> list[Any]:
    return [module for module in network.modules() if type(module).__name__ == "GemmaRMSNorm"]


def successors(vocabulary: int) -> Any:
    """int64 ``[vocabulary]``: the token after each. One cycle through all of them (Hull and Dobell's theorem) as long
    as 2 and 5 are the only primes that divide `vocabulary`."""
    import torch

    return (torch.arange(vocabulary) * 12021 + 7919) % vocabulary


def draw(network: Any) -> None:
    """Weights that keep the scale of the activations, and lead from each token to its successor.

    Parameters of one value a head (decay, bias) stay as they are.
    """
    import torch

    device = next(network.parameters()).device
    generator = torch.Generator(device=device).manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.dim() >= 2 and weight.is_floating_point():
            weight.data.normal_(std=0.05 if "gate" in name else 0.02, generator=generator)
    for norm in _gemma_norms(network):
        norm.weight.data.normal_(std=0.1, generator=generator)
    (embedding,) = _named(network, "embed_tokens.weight")
    (head,) = _named(network, "lm_head.weight")
    embedding.normal_(generator=generator)
    head[successors(len(head)).to(device)] = embedding * 0.02


def _named(network: Any, ending: str) -> list[Any]:
    return [weight.data for name, weight in network.named_parameters() if name.endswith(ending)]


def _lead(logits: Any) -> float:
    """The least difference between the two best logits of a row."""
    best, second = logits.float().topk(2, dim=-1).values.unbind(-1)
    return float((best - second).min())


def _decode(bench: Any, runner: Any, batch: int, leads: list[float] | None = None) -> tuple[list[list[int]], float]:
    """Tokens [batch][NEW], and decoded tokens a second after the prefill; `leads` gets that of every step, which takes
    time."""
    import torch

    runner.req_to_token_pool.clear()
    runner.token_to_kv_pool_allocator.clear()
    prompts = torch.randint(1, 30000, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
    requests = bench.prepare_synthetic_inputs_for_latency_test(batch, PROMPT, prompts)
    following, _, state = bench.extend(requests, runner)
    steps = [following]
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(NEW - 1):
        following, logits = bench.decode(following, state, runner)
        if leads is not None:
            leads.append(_lead(logits))
        steps.append(following)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    rows: list[list[int]] = torch.stack(steps, 1).tolist()
    return rows, batch * (NEW - 1) / seconds
