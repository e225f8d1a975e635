"""The GPU: what it is, and how fast it copies and multiplies in this run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable

import torch

import overlay
from benchmarks.results import Machine, Timing

_COPY_BYTES = 1 << 30
_MATRIX = 8192
#: A copy whose size is not a multiple of this may take a slow path of the driver.
_GRAIN = 4096

Timer = Callable[[Callable[[], object]], Timing]


def describe(timer: Timer) -> Machine:
    """Measures the two rates; needs 3 GiB of the GPU's memory."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    architecture = properties.gcnArchName if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    return Machine(
        gpu=properties.name,
        architecture=architecture,
        compute_units=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        memory_bytes=properties.total_memory,
        versions=versions(),
        copy_bytes_per_second=_COPY_BYTES * 2 / copy_timing(timer, 2 * _COPY_BYTES).median * 1e6,
        operations_per_second=2 * _MATRIX**3 / _product_timing(timer).median * 1e6,
    )


def versions() -> dict[str, str]:
    """Of this project and of what decides how fast a kernel is."""
    found = {"amd-sglang-overlay": overlay.__version__, "python": platform.python_version(), "torch": torch.__version__}
    found["triton"] = importlib.metadata.version("triton")
    if torch.version.hip:
        found["hip"] = torch.version.hip
    elif torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def copy_timing(timer: Timer, bytes_moved: int) -> Timing:
    """A copy on the device that reads half of `bytes_moved` and writes the other half."""
    half = max(_GRAIN, round(bytes_moved / 2 / _GRAIN) * _GRAIN)
    source = torch.empty(half, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return timer(lambda: target.copy_(source))


def _product_timing(timer: Timer) -> Timing:
    a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda").bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    return timer(lambda: torch.mm(a, b, out=product))
