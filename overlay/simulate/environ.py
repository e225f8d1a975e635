"""The environment of a simulated process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from overlay.simulate.settings import SIMULATE, SIMULATE_AITER, arch_named, simulated_aiter

#: Holds `rocminfo`: sglang asks it for the GPU's memory (srt/utils/common.py get_amdgpu_memory_capacity).
_BIN = Path(__file__).parent / "bin"


def environment(arch: str, base: Mapping[str, str]) -> dict[str, str]:
    """`base` and what a process needs besides to be simulated as `arch`.

    Switches of sglang that the user has set are kept. Raises UnknownArchError, or UnknownAiterError for a version in
    `base` that is not simulated.
    """
    name = arch_named(arch).name
    simulated_aiter(base)
    wanted = dict(base)
    wanted[SIMULATE] = name
    wanted["PATH"] = _with_tools(base.get("PATH", os.defpath))
    # Kernels run as Python over numpy. The compiler behind torch.compile would compile for the GPU it believes in.
    wanted["TRITON_INTERPRET"] = "1"
    wanted["TORCHDYNAMO_DISABLE"] = "1"
    # Halves the import of sglang: tvm_ffi otherwise compiles a C++ extension that a simulation never calls.
    wanted["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"
    # As AMD's images set it; without an aiter sglang cannot be asked to use one.
    wanted.setdefault("SGLANG_USE_AITER", "0" if base.get(SIMULATE_AITER) == "none" else "1")
    # The C++ radix tree of 0.5.23 is compiled at start, with a GPU toolchain.
    wanted.setdefault("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python")
    return wanted


def _with_tools(path: str) -> str:
    rest = [entry for entry in path.split(os.pathsep) if entry != str(_BIN)]
    return os.pathsep.join([str(_BIN), *rest])
