"""Simulated ROCm: on a machine without a GPU, torch, Triton, aiter and sgl_kernel answer as on one AMD Instinct.

Loaded only where `AMD_SGLANG_SIMULATE` asks for it. Tensors live on the CPU, Triton kernels run in Triton's own
interpreter, and `aiter` and `sgl_kernel` are contract fakes: real names, real signatures, PyTorch bodies. What a run
shows is which code sglang takes on ROCm and what it computes; it shows nothing about speed, and nothing about what
the real kernels round. This module is all that the rest of the overlay uses; it needs the standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from overlay.simulate import counters
from overlay.simulate.environ import environment
from overlay.simulate.settings import arch_named, simulated_aiter

__all__ = ["aiter_version", "banner", "calls", "environment", "install"]


def install() -> None:
    """Arm the simulation in this interpreter: every module it changes is still to be imported.

    Idempotent. Imports neither torch nor triton. Raises UnknownArchError or UnknownAiterError if the environment asks
    for something that is not simulated.
    """
    from overlay.simulate import hooks

    hooks.arm(os.environ)


def banner() -> str:
    """One line that says what this process is, for logs and for people."""
    version = aiter_version(os.environ)
    aiter = f"aiter {version} contract" if version else "no aiter"
    arch = arch_named(os.environ.get("AMD_SGLANG_SIMULATE", ""))
    return f"SIMULATED ROCm {arch.name} on CPU ({aiter}, Triton interpreter): not a GPU"


def calls() -> dict[str, int]:
    """How often each faked or interpreted function ran in this process so far.

    `aiter.<full name>`, `sgl_kernel.<name>`, `jit:<kernel>`, `triton:<module>.<kernel>` per launch, and
    `op:<Class>.<forward method>` per dispatch of one of sglang's multi-platform operators.
    """
    return counters.snapshot()


def aiter_version(environ: Mapping[str, str]) -> str | None:
    """The aiter whose contract the simulation answers with; None if there is none to import."""
    return simulated_aiter(environ)
