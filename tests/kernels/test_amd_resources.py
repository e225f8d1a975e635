"""What AMD's compiler makes of the kernels is what docs/amd_resources.* and `tuned/` say, and fits the hardware."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from patches.kernels import tuning
from tests.kernels import amd_resources
from tests.kernels.amd_builds import PROGRAMS, Build, spilling
from tests.kernels.amd_hardware import HARDWARE, by_registers, waves_per_simd

Builds = Callable[[str, str], list[Build]]

_PAIRS = [(kernel, arch) for kernel, (_, archs) in PROGRAMS.items() for arch in archs]


@pytest.mark.parametrize(("kernel", "arch"), _PAIRS)
def test_every_build_fits_the_hardware(kernel: str, arch: str, amd_builds: Builds) -> None:
    hardware = HARDWARE[arch]
    builds = amd_builds(kernel, arch)
    assert not spilling(builds)
    for build in builds:
        assert build["threads"] % hardware.wave == 0 and build["threads"] <= 1024, build
        assert build["lds_bytes"] <= 64 << 10, build  # what one workgroup may have on any of them but gfx950
        assert waves_per_simd(arch, build["vgprs"], build["lds_bytes"], build["threads"]) >= 1, build
        # The compiler knows the registers, and what Triton asks for at launch, the LDS, only where there is none.
        assert build["compiler_waves"] == by_registers(arch, build["vgprs"]), build


def test_the_committed_tables_are_what_compiles(amd_builds: Builds) -> None:
    builds = {kernel: {arch: amd_builds(kernel, arch) for arch in archs} for kernel, (_, archs) in PROGRAMS.items()}
    made = amd_resources.documents(builds)
    stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"{stale}: {amd_resources.COMMAND}"


@pytest.mark.parametrize("arch", HARDWARE)
def test_a_kernel_is_launched_as_it_was_compiled(arch: str, amd_builds: Builds) -> None:
    """The configurations that ship for the architecture are those that the table is about."""
    for kernel in tuning.SPACES:
        for build in amd_builds(kernel, arch) if arch in PROGRAMS[kernel][1] else ():
            assert tuning.choice(kernel, build["shape_class"], arch) == build["config"]


@pytest.mark.parametrize(
    ("arch", "vgprs", "lds_bytes", "threads", "waves"),
    [
        ("gfx942", 1, 0, 64, 8),
        ("gfx942", 64, 0, 256, 8),
        ("gfx942", 65, 0, 64, 7),
        ("gfx942", 128, 0, 256, 4),
        ("gfx942", 257, 0, 256, 1),
        ("gfx942", 512, 0, 256, 1),
        ("gfx942", 32, 32768, 256, 2),  # two workgroups of one wave a SIMD
        ("gfx942", 32, 32769, 256, 1),
        ("gfx950", 32, 32768, 256, 4),  # allotted in 1280 bytes, 33280 of 163840
        ("gfx950", 32, 32000, 256, 5),
        ("gfx942", 32, 65537, 256, 0),
        ("gfx1100", 96, 0, 128, 16),
        ("gfx1100", 97, 0, 128, 12),
        ("gfx1201", 121, 0, 128, 10),
        ("gfx1201", 24, 65536, 128, 2),
    ],
)
def test_waves_by_formula(arch: str, vgprs: int, lds_bytes: int, threads: int, waves: int) -> None:
    assert waves_per_simd(arch, vgprs, lds_bytes, threads) == waves


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        ("global_load_dwordx4", 16),
        ("global_load_b128", 16),
        ("buffer_load_dwordx2", 8),
        ("global_load_b64", 8),
        ("global_load_dword", 4),
        ("buffer_store_b32", 4),
        ("global_load_ushort", 2),
        ("global_load_d16_b16", 2),
        ("global_load_u16", 2),
        ("global_load_ubyte", 1),
        ("buffer_load_u8", 1),
    ],
)
def test_width_of_an_instruction(operation: str, size: int) -> None:
    assert amd_resources.width(operation) == size
