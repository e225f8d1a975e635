"""Decodes with the real sglang 0.5.12, Qwen3.5's alternate streams off and on, under CUDA graphs: tokens and speed.

    python benchmarks/dual_stream_engine.py [--batch 1 16 64] [--rounds 2] [--json out.json]

The model has Qwen3.5's MoE shape (16 layers, hidden 2048, 128 experts, one shared), weights drawn from a seed, so that
its tokens vary from row to row and step to step. It runs on an NVIDIA GPU, where this release makes streams by itself:
each process first takes them away, which is what ROCm gets, and "on" then applies `qwen3_5-alt-stream` as an AMD
process would. Every mode is run in processes of its own, in turn, `--rounds` times; the tokens of all must agree.

What it shows of AMD: that the patch serves the same tokens under graph replay. The gain is this GPU's.

Needs a CUDA GPU, sglang 0.5.12 and what it imports; exits with status 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VARIABLES = ("SGLANG_ALT_STREAM", "SGLANG_GDN_QKVZ_BA_ALT_STREAM", "SGLANG_QK_NORM_ALT_STREAM")
MODES = {"off": {}, "on": dict.fromkeys(VARIABLES, "1"), "MoE only": {"SGLANG_ALT_STREAM": "1"}}
PROMPT, NEW = 128, 128
TEXT = {
    "model_type": "qwen3_5_moe_text",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 16,
    "patch_size": 16,
}
CONFIG = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "dtype": "bfloat16",
    "text_config": TEXT,
    "vision_config": VISION,
    "image_token_id": 31990,
    "video_token_id": 31991,
    "vision_start_token_id": 31992,
    "vision_end_token_id": 31993,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("RESULT " + json.dumps(_serve(Path(options.child), options.batch)))
        return 0
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        print("needs an NVIDIA GPU", file=sys.stderr)
        return 2
    runs = [{"mode": mode, **_spawn(mode, options.batch)} for _ in range(options.rounds) for mode in MODES]
    document = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "runs": runs}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    agree = all(run["tokens"] == runs[0]["tokens"] for run in runs)
    print(f"{document['gpu']}, torch {document['torch']}, sglang {runs[0]['sglang']}")
    print(f"streams held, by mode: { {run['mode']: run['streams'] for run in runs} }")
    print(f"tokens of all {len(runs)} runs agree: {agree} (distinct tokens a batch: {runs[0]['distinct']})")
    print("batch  mode      tokens/s (median; lowest - highest of the runs)   ratio to off")
    for batch in map(str, options.batch):
        rates = {m: [run["rate"][batch] for run in runs if run["mode"] == m] for m in MODES}
        for mode, seen in rates.items():
            middle = statistics.median(seen)
            ratio = middle / statistics.median(rates["off"])
            print(f"{batch:>5}  {mode:<8}  {middle:9.1f} ({min(seen):.1f} - {max(seen):.1f})   {ratio:.3f}")
    return 0 if agree else 1


def _spawn(mode: str, batches: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        command = [sys.executable, __file__, "--child", folder, "--batch", *map(str, batches)]
        done = subprocess.run(command, env={**environ, **MODES[mode]}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{mode} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def _serve(model: Path, batches: list[int]) -> dict[str, Any]:
    """In a process of its own: build, capture, prefill and decode; tokens and rates by batch size."""
    import sglang
    import torch
    from sglang import bench_one_batch
    from sglang.srt.server_args import PortArgs, ServerArgs, set_global_server_args_for_scheduler

    _like_rocm()
    vars(bench_one_batch)["get_tokenizer"] = lambda *_args, **_kwargs: None
    arguments = ServerArgs(
        model_path=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        attention_backend="triton",
        sampling_backend="pytorch",
        grammar_backend="none",
        disable_piecewise_cuda_graph=True,
        disable_radix_cache=True,
        disable_overlap_schedule=True,
        cuda_graph_bs=batches,
        max_running_requests=max(batches),
        mem_fraction_static=0.6,
    )
    bench_one_batch._set_envs_and_config(arguments)
    set_global_server_args_for_scheduler(arguments)
    bench_one_batch.initialize_moe_config(arguments)
    runner, _ = bench_one_batch.load_model(arguments, PortArgs.init_new(arguments), 0, 0)
    network = runner.torch_runner.model
    _draw(network)
    found: dict[str, Any] = {"sglang": sglang.__version__, "streams": _streams(network), "tokens": {}, "rate": {}}
    for batch in batches:
        tokens, rate = _decode(bench_one_batch, runner, batch)
        found["tokens"][str(batch)], found["rate"][str(batch)] = tokens, rate
    found["distinct"] = {b: len({t for row in rows for t in row}) for b, rows in found["tokens"].items()}
    torch.cuda.synchronize()
    return found


def _like_rocm() -> None:
    """Take away the streams that this release makes on CUDA, then install the patch as in an AMD process."""
    import wrapt
    from sglang.srt.models import qwen3_5

    def without_streams(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        for module in instance.modules():
            if getattr(module, "alt_stream", None) is not None:
                module.alt_stream = None

    wrapt.wrap_function_wrapper(qwen3_5, "Qwen3_5ForCausalLM.__init__", without_streams)
    if os.environ.get(VARIABLES[0]):
        from overlay.install import Ledger
        from overlay.observer import Observer
        from overlay.source import installed_tree
        from patches.qwen3_5_alt_stream import PATCH

        observer = Observer(installed_tree())
        (variant,) = [v for v in PATCH.variants if all(observer.observe(i.slot) in i.digests for i in v.images)]
        Ledger().install(PATCH.id, variant.targets)


def _draw(network: Any) -> None:
    """Weights that keep the scale of the activations. Parameters of one value a head (decay, bias) stay as they are."""
    import torch

    generator = torch.Generator(device="cuda").manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.dim() >= 2 and weight.is_floating_point():
            weight.data.normal_(std=0.05 if "gate" in name else 0.02, generator=generator)


def _streams(network: Any) -> dict[str, int]:
    """How many modules of each class hold a stream."""
    held: dict[str, int] = {}
    for module in network.modules():
        if getattr(module, "alt_stream", None) is not None:
            held[type(module).__name__] = held.get(type(module).__name__, 0) + 1
    return held


def _decode(bench: Any, runner: Any, batch: int) -> tuple[list[list[int]], float]:
    """Tokens [batch][NEW] and decoded tokens a second. One untimed pass first."""
    import torch

    rows: list[list[int]] = []
    seconds = 0.0
    for _ in range(2):
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
        rows = torch.stack(steps, 1).tolist()
    return rows, batch * (NEW - 1) / seconds


if __name__ == "__main__":
    sys.exit(main())
