"""The GPUs that the amdgpu driver lists, read from its files in /sys: no driver call, no library."""

from __future__ import annotations

import re
from pathlib import Path

from overlay.records import dataclass

NODES = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True)
class Gpu:
    """One GPU. `unique_id` is 0 where the driver gives none; ROCR_VISIBLE_DEVICES spells it GPU-%016x."""

    node: int
    arch: str
    unique_id: int = 0


def arch_name(target_version: int) -> str:
    """The gfx name of a gfx_target_version: major*10000 + minor*100 + step, and the name spells minor and step in
    hexadecimal (90402 -> gfx942, 90010 -> gfx90a)."""
    return f"gfx{target_version // 10000}{target_version // 100 % 100:x}{target_version % 100:x}"


def gpus(nodes: Path = NODES) -> tuple[Gpu, ...]:
    """Every GPU in the driver's order, which is the order of ROCm's device numbers. CPUs are nodes too: version 0."""
    found = []
    numbered = [path for path in nodes.glob("*/properties") if path.parent.name.isdecimal()]
    for path in sorted(numbered, key=lambda path: int(path.parent.name)):
        try:
            properties = dict(re.findall(r"^(gfx_target_version|unique_id) (\d+)$", path.read_text(), re.MULTILINE))
        except OSError:
            continue
        version = int(properties.get("gfx_target_version", 0))
        if version:
            found.append(Gpu(int(path.parent.name), arch_name(version), int(properties.get("unique_id", 0))))
    return tuple(found)
