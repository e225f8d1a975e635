"""How many waves of a kernel a SIMD of an AMD GPU holds at once, from the kernel's registers and LDS.

Registers are LLVM's figures (AMDGPUBaseInfo.cpp: `getTotalNumVGPRs`, `getVGPRAllocGranule`, `getMaxWavesPerEU`), and
`by_registers` is compared with the occupancy that the compiler prints. CDNA3 and 4 have one file of 512 registers a
lane for vector and accumulation registers together; RDNA 3 and 4, at 32 lanes a wave, have 1536. Scalar registers limit
neither: every wave gets its whole set. LDS is that of AMD's hardware tables (ROCm documentation, "GPU hardware
specifications"): 64 KiB for a compute unit of CDNA3, 160 KiB of CDNA4, and for two of RDNA, which share it, 128 KiB.
"""

from __future__ import annotations

from typing import NamedTuple


class Hardware(NamedTuple):
    """`vgprs` of a lane of one SIMD, allotted in units of `granule`; `lds_bytes` that `simds` SIMDs share."""

    wave: int
    vgprs: int
    granule: int
    most_waves: int
    simds: int
    lds_bytes: int
    lds_granule: int


HARDWARE = {
    "gfx942": Hardware(64, 512, 8, 8, 4, 64 << 10, 512),
    "gfx950": Hardware(64, 512, 8, 8, 4, 160 << 10, 1280),
    "gfx1100": Hardware(32, 1536, 24, 16, 4, 128 << 10, 1024),
    "gfx1201": Hardware(32, 1536, 24, 16, 4, 128 << 10, 1024),
}


def by_registers(arch: str, vgprs: int) -> int:
    """Waves that the registers of a SIMD are enough for."""
    hardware = HARDWARE[arch]
    return min(hardware.most_waves, hardware.vgprs // _up(max(vgprs, 1), hardware.granule))


def waves_per_simd(arch: str, vgprs: int, lds_bytes: int, threads: int) -> int:
    """Waves of whole workgroups of `threads` threads that a SIMD holds on average; 0 if not one workgroup fits."""
    hardware = HARDWARE[arch]
    waves = threads // hardware.wave
    groups = by_registers(arch, vgprs) * hardware.simds // waves
    if lds_bytes:
        groups = min(groups, hardware.lds_bytes // _up(lds_bytes, hardware.lds_granule))
    return groups * waves // hardware.simds


def _up(value: int, granule: int) -> int:
    return -(-value // granule) * granule
