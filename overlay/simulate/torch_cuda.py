"""`torch.cuda` without a GPU: queries answer as the simulated architecture, streams and events are inert."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch

from overlay.simulate import torch_streams
from overlay.simulate.settings import Arch

#: A standard node.
_DEVICES = 8
#: What sglang believes to be free. It makes its KV cache out of this, and here that is the machine's own memory.
_FREE_BYTES = 1 << 30
_WITHOUT_EFFECT = (
    "set_device",
    "synchronize",
    "empty_cache",
    "ipc_collect",
    "reset_peak_memory_stats",
    "manual_seed",
    "manual_seed_all",
)


class _Device:
    """Stands for `torch.cuda.device`: there is nothing to switch to."""

    def __init__(self, device: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def apply(arch: Arch) -> None:
    """Answer for `arch` from now on."""
    properties = _properties(arch)

    def constant(value: object) -> Callable[..., object]:
        return lambda *args, **kwargs: value

    answers: dict[str, object] = {
        "is_available": constant(True),
        "device_count": constant(_DEVICES),
        "current_device": constant(0),
        "get_device_capability": constant(arch.capability),
        "get_device_name": constant(arch.product),
        "get_device_properties": constant(properties),
        "mem_get_info": constant((_FREE_BYTES, arch.memory)),
        "is_current_stream_capturing": constant(False),
        "device": _Device,
    }
    # Each name its own function: torch._dynamo/trace_rules.py refuses one object under two of them.
    answers |= {name: constant(0) for name in ("memory_allocated", "memory_reserved", "max_memory_allocated")}
    answers |= {name: constant(None) for name in _WITHOUT_EFFECT}
    answers |= torch_streams.replacements()
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    # The flash-linear-attention kernels ask the module that a tensor's device names (fla/utils.py input_guard and
    # layernorm_gated.py), and here that is torch.cpu.
    torch.cpu.device = _Device  # type: ignore[attr-defined]
    torch.cpu.get_device_properties = constant(properties)  # type: ignore[attr-defined]


def _properties(arch: Arch) -> SimpleNamespace:
    return SimpleNamespace(
        name=arch.product,
        gcnArchName=f"{arch.name}:sramecc+:xnack-",
        major=arch.capability[0],
        minor=arch.capability[1],
        multi_processor_count=arch.compute_units,
        total_memory=arch.memory,
        warp_size=64,
        shared_memory_per_block=65536,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        L2_cache_size=4 << 20,
        is_integrated=False,
        uuid="0",
    )
