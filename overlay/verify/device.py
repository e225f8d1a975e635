"""The GPU that kernels are verified on, or the interpreter that stands for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

import overlay
from overlay import gates
from overlay.errors import OverlayError
from overlay.platform import detect
from overlay.verify.outcome import Device


def find(environ: Mapping[str, str]) -> tuple[torch.device, Device]:
    """The first visible GPU, or the CPU for the simulated one. Raises OverlayError without either."""
    platform = detect(environ)
    versions = {"overlay": overlay.__version__, "torch": torch.__version__, "triton": triton.__version__}
    if platform.aiter:
        versions["aiter"] = platform.aiter
    simulated = gates.SIMULATE.read(environ)
    if simulated:
        name = f"simulated {simulated}: Triton's interpreter on the CPU, not a GPU"
        return torch.device("cpu"), Device(name, simulated, True, versions)
    if not torch.cuda.is_available():
        raise OverlayError(
            f"torch {torch.__version__} sees no GPU. Run `amd-sglang verify` where the server will run, or "
            "`amd-sglang verify --simulate gfx942` to run the kernels in Triton's interpreter on tiny shapes."
        )
    name = torch.cuda.get_device_name(0)
    properties = torch.cuda.get_device_properties(0)
    arch = properties.gcnArchName.partition(":")[0] if torch.version.hip else name
    return torch.device("cuda", 0), Device(name, arch, False, versions)
