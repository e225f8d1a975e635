"""Counts the Python frames of the hot methods that patches replace, with the patch and without.

    python -m overlay --simulate gfx942 benchmarks/hot_frames.py [--json out.json]

"above": how deep the method stands below the call of its layer, where a wrapper would add a frame to every call; that
a patch adds none is what the exit status says. "in all": every Python function that is entered before the call
returns, sglang's, torch's and ours: the host code that chooses and launches one kernel, against that of the operators
it replaces. What runs below a launch (Triton's launcher, which the simulation interprets) or below an operator that the
simulation stands for is not counted. "ours" is the layer as this process builds it, "upstream" one of the same class
built after the patch was taken out of the process. Counted with `sys.setprofile`, so the numbers do not vary; a launch
of a captured graph runs none of these frames.

`amd-sglang patches plan` says where a patch is planned; one that is not in force here is left out. Needs sglang and
what it imports; no GPU. Exits with status 1 where a patch adds a frame above its method.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.frame_count import json_option, profiled, write
from overlay import runtime
from overlay.model import State
from tests.patches.in_release import one_rank
from tests.patches.in_release.vllm_placeholder import provide_vllm

_ROOT = Path(__file__).resolve().parents[1]
TOKENS, HIDDEN, VOCAB = 4, 64, 1024
_BELOW_A_LAUNCH = (f"{Path(sys.modules['torch'].__file__ or '').parents[1] / 'triton'}/", f"{_ROOT}/overlay/simulate/")

Call = Callable[[], object]


@dataclass(frozen=True)
class Frames:
    """Of one call: Python functions on the stack when the method is entered, and Python functions entered in all."""

    above: int
    in_all: int


def frames(call: Call, method_in: str) -> Frames:
    """Of `call` when it runs for the second time. The method is the first function of a file whose name begins with
    `method_in`."""
    entered: list[tuple[int, str]] = []
    depth = launched = 0

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal depth, launched
        if event == "call":
            depth += 1
            if not launched and frame.f_code.co_filename.startswith(_BELOW_A_LAUNCH):
                launched = depth
            if not launched:
                entered.append((depth, frame.f_code.co_filename))
        elif event == "return":
            if depth == launched:
                launched = 0
            depth -= 1

    profiled(call, profile)
    above = next(depth for depth, file in entered if file.startswith(method_in)) - 1
    return Frames(above - 1, len(entered) - 1)  # `call` itself stands on top


def gemma_norm(with_residual: bool) -> Call:
    from sglang.srt.layers.layernorm import GemmaRMSNorm

    norm = GemmaRMSNorm(HIDDEN).to(torch.bfloat16)
    x, residual = torch.randn(2, TOKENS, HIDDEN, dtype=torch.bfloat16)
    return lambda: norm(x, residual) if with_residual else norm(x)


def greedy_sampler() -> Call:
    from sglang.srt.layers import sampler

    sampler.get_tp_group = lambda: SimpleNamespace(device_group=None)
    layer = sampler.Sampler()
    output = sampler.LogitsProcessorOutput(next_token_logits=torch.randn(TOKENS, VOCAB))
    info: Any = SimpleNamespace(is_all_greedy=True, has_custom_logit_processor=False, grammars=None)
    return lambda: layer(output, info, False, [0] * TOKENS, [None] * TOKENS, torch.arange(TOKENS))


def qwen3_attention() -> Call:
    from sglang.srt.models.qwen3 import Qwen3Attention

    from tests.patches.in_release.check_qwen3_fused_attention import make

    return make(Qwen3Attention).run


@dataclass(frozen=True)
class Layer:
    """A layer whose method, of `module`, a patch replaces."""

    name: str
    patch: str
    module: str
    build: Callable[[], Call]


LAYERS = (
    Layer("GemmaRMSNorm(x)", "gemma-rmsnorm", "sglang.srt.layers.layernorm", lambda: gemma_norm(False)),
    Layer("GemmaRMSNorm(x, residual)", "gemma-rmsnorm", "sglang.srt.layers.layernorm", lambda: gemma_norm(True)),
    Layer("Sampler, greedy batch", "greedy-sampler", "sglang.srt.layers.sampler", greedy_sampler),
    Layer("Qwen3Attention, decode", "qwen3-fused-attention", "sglang.srt.models.qwen3", qwen3_attention),
)


def measure(overlay: runtime.Runtime) -> dict[str, tuple[Frames, Frames]]:
    """Name of a layer whose patch is in force -> its frames with the patch and without. Takes the patches out."""
    here = [layer for layer in LAYERS if overlay.state(layer.patch)[0] is State.APPLIED]
    with torch.no_grad():
        ours = [frames(layer.build(), f"{_ROOT}/patches/") for layer in here]
        for patch in {layer.patch for layer in here}:
            overlay.uninstall(patch)
        upstream = [frames(layer.build(), str(sys.modules[layer.module].__file__)) for layer in here]
    return {layer.name: pair for layer, *pair in zip(here, ours, upstream, strict=True)}  # type: ignore[misc]


def main() -> int:
    path = json_option(__doc__)
    provide_vllm()
    one_rank.start()
    for module in {layer.module for layer in LAYERS}:
        importlib.import_module(module)
    overlay = runtime.current()
    rows = measure(overlay) if overlay is not None else {}
    if not rows:
        print("none of the patches is in force here: see the command above", file=sys.stderr)
        return 2
    print(f"{'layer':28}{'above: ours':>12}{'upstream':>10}{'in all: ours':>14}{'upstream':>10}")
    for name, (ours, upstream) in rows.items():
        print(f"{name:28}{ours.above:12}{upstream.above:10}{ours.in_all:14}{upstream.in_all:10}")
    if path is not None:
        write(path, rows)
    return int(any(ours.above > upstream.above for ours, upstream in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
