"""Counts the Python frames of one forward of Qwen3.5's layers, with the overlay's streams and with upstream's own.

    SGLANG_ALT_STREAM=1 SGLANG_GDN_QKVZ_BA_ALT_STREAM=1 SGLANG_QK_NORM_ALT_STREAM=1 \\
        python -m overlay --simulate gfx942 benchmarks/dual_stream_frames.py [--json out.json]

A launch of a captured graph runs no Python, but its capture and every eager step do. "ours" are the layers of a model
that `qwen3_5-alt-stream` gave its stream; "upstream" are the same classes after every patch of streams was taken out
of the process, given a stream through the constructor's own argument, as on CUDA. Both fork, as under capture. The
last column is the deepest stack below the call. Counted with `sys.setprofile`, so the numbers do not vary.

Needs sglang 0.5.10 to 0.5.12.post1 and what it imports; no GPU. Exits with status 2 where the patch is not in force.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.frame_count import json_option, profiled, write
from overlay import runtime
from overlay.model import State
from overlay.simulate import torch_streams
from tests.patches.in_release import one_rank
from tests.patches.in_release.qwen3_5_models import HIDDEN, build, text_config

TOKENS = 4
PATCHES = ("qwen3_5-alt-stream", "fix-dual-stream-inplace")


@dataclass(frozen=True)
class Frames:
    """Python functions entered during one call, and the deepest stack of them."""

    calls: int
    depth: int


def frames(call: Callable[[], object]) -> Frames:
    """Of `call` when it runs for the second time."""
    calls = depth = deepest = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls, depth, deepest
        if event == "call":
            calls, depth = calls + 1, depth + 1
            deepest = max(deepest, depth)
        elif event == "return":
            depth -= 1

    profiled(call, profile)
    return Frames(calls, deepest)


def measure(layers: Any) -> dict[str, Frames]:
    """Frames of every forward that may fork, in a linear and in an attention layer."""
    linear, attention = layers
    hidden_states = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16)
    with torch.no_grad():
        return {
            "MoE block": frames(lambda: linear.mlp(hidden_states.clone())),
            "GDN projections": frames(lambda: linear.linear_attn._forward_input_proj(hidden_states)),
            "QK norms": frames(lambda: attention._apply_qk_norm(hidden_states, hidden_states[:, : HIDDEN // 2])),
        }


def by_the_overlay() -> Any:
    """The layers of a model as this process builds it."""
    from sglang.srt.models.qwen3_5 import Qwen3_5MoeForCausalLM

    return build(Qwen3_5MoeForCausalLM, config=text_config(can_fuse=False)).layers


def by_upstream() -> list[Any]:
    """The same two layers, of constructors that are given a stream."""
    from sglang.srt.models.qwen3_5 import ALL_DECODER_LAYER_TYPES

    config, stream = text_config(can_fuse=False), torch_streams.Stream()
    return [
        build(ALL_DECODER_LAYER_TYPES[kind], config=config, layer_id=index, alt_stream=stream)
        for index, kind in enumerate(config.layers_block_type)
    ]


def compare() -> dict[str, tuple[Frames, Frames]]:
    """Name of a forward -> its frames with the overlay's stream and with upstream's. Takes the patches out."""
    from sglang.srt.models import deepseek_v2, qwen2_moe, qwen3_5

    assert deepseek_v2  # the fix of the experts waits for it
    for module in (qwen2_moe, qwen3_5):
        module.get_is_capture_mode = lambda: True
    ours = measure(by_the_overlay())
    overlay = runtime.current()
    assert overlay is not None
    for patch_id in PATCHES:
        overlay.uninstall(patch_id)
    upstream = measure(by_upstream())
    return {name: (ours[name], upstream[name]) for name in ours}


def main() -> int:
    path = json_option(__doc__)
    arguments_of_server = one_rank.start()
    arguments_of_server.disable_piecewise_cuda_graph = True
    from sglang.srt.models import deepseek_v2, qwen3_5

    assert deepseek_v2 and qwen3_5
    overlay = runtime.current()
    if overlay is None or overlay.state(PATCHES[0])[0] is not State.APPLIED:
        print("qwen3_5-alt-stream is not in force here: see the command above", file=sys.stderr)
        return 2
    rows = compare()
    print(f"{'forward':18}{'ours':>8}{'upstream':>10}{'depth ours':>12}{'upstream':>10}")
    for name, (ours, upstream) in rows.items():
        print(f"{name:18}{ours.calls:8}{upstream.calls:10}{ours.depth:12}{upstream.depth:10}")
    if path is not None:
        write(path, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
