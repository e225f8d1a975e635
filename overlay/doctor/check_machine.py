"""GPU, driver and ROCm."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from overlay import visibility
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, error, info, ok, warning

_DEVICES = "Start the container with --device=/dev/kfd --device=/dev/dri --group-add video --group-add render."


def gpu(facts: Facts) -> Iterator[Finding]:
    """Whether there is a GPU that this user may use."""
    machine = facts.machine
    if facts.platform.simulated:
        yield info("gpu", f"{facts.platform}: nothing here is said about real hardware")
        if machine.gpus:
            yield warning(
                "gpu", f"this machine has a real {machine.gpus[0].arch}, which a simulation does not use",
                "Unset AMD_SGLANG_SIMULATE to serve on the GPU.",
            )  # fmt: skip
    elif not machine.gpus:
        yield warning(
            "gpu",
            "the amdgpu driver lists no GPU (/sys/class/kfd), so this cannot be known: the architecture, whether "
            "sgl_kernel and aiter have code for it, and which patches that architecture gets",
            f"Run doctor where the server runs. {_DEVICES}",
        )
    elif machine.device is None:
        yield error("gpu", "the driver lists GPUs, but there is no /dev/kfd here", _DEVICES)
    elif not machine.device:
        yield error("gpu", "/dev/kfd cannot be opened for reading and writing by this user", _DEVICES)
    else:
        counted = Counter(gpu.arch for gpu in machine.gpus)
        yield ok("gpu", ", ".join(f"{number} x {arch}" for arch, number in counted.items()))


def visible_gpus(facts: Facts) -> Iterator[Finding]:
    """Plans are made for the first GPU of the driver; a server may see others."""
    gpus, environ = facts.machine.gpus, facts.environ
    if not gpus or facts.platform.simulated:
        return
    seen = visibility.visible(gpus, environ)
    if not seen:
        yield error(
            "visible-gpus", f"{visibility.hiding(environ)} hides every GPU",
            f"Give numbers from 0 to {len(gpus) - 1}, or unset it.",
        )  # fmt: skip
        return
    archs = sorted({gpu.arch for gpu in seen})
    if len(archs) > 1:
        number = next(at for at, gpu in enumerate(seen) if gpu.arch == facts.platform.arch or at == len(seen) - 1)
        yield warning(
            "visible-gpus", f"GPUs of several architectures are visible ({', '.join(archs)}); patches are decided for "
            f"{facts.platform.arch} and would run on all of them",
            f"Set {visibility.HIP} to GPUs of one architecture, for example {visibility.HIP}={number}.",
        )  # fmt: skip
    elif facts.platform.arch not in archs:
        yield warning(
            "visible-gpus", f"{visibility.hiding(environ)} leaves only {archs[0]}, but patches are decided for the "
            f"first GPU of the machine, {facts.platform.arch}",
            f"Take the other GPUs out of the container (pass only the /dev/dri/renderD* of the {archs[0]}), or check "
            f"`amd-sglang patches plan --arch {archs[0]}` and --disable what must not run there.",
        )  # fmt: skip


def device_variables(facts: Facts) -> Iterator[Finding]:
    """Variables that make ROCm tell another story than the driver."""
    environ = facts.environ
    hip, cuda = environ.get(visibility.HIP), environ.get(visibility.CUDA)
    if hip and cuda and hip != cuda:
        yield warning(
            "device-variables", f"{visibility.HIP}={hip} and {visibility.CUDA}={cuda} disagree: HIP takes the first, "
            "while Ray and parts of torch take the second",
            f"Unset {visibility.CUDA}.",
        )  # fmt: skip
    override = environ.get("HSA_OVERRIDE_GFX_VERSION")
    if override:
        yield warning(
            "device-variables", f"HSA_OVERRIDE_GFX_VERSION={override} makes ROCm report an architecture that the GPU "
            f"does not have (the driver says {facts.platform.arch or 'nothing'}); patches go by the driver",
            "Unset HSA_OVERRIDE_GFX_VERSION.",
        )  # fmt: skip


def rocm(facts: Facts) -> Iterator[Finding]:
    """The ROCm folder, and whether torch was built for the same ROCm."""
    machine, torch = facts.machine, facts.torch
    if facts.platform.simulated:
        return
    if machine.rocm is None:
        yield info(
            "rocm", "no ROCm in ROCM_PATH or /opt/rocm: torch brings its own libraries, but what is compiled at run "
            "time (aiter, sglang's own kernels) needs hipcc",
            "Use an image that has ROCm, or set ROCM_PATH.",
        )  # fmt: skip
        return
    built_for = _minor(torch.hip) if torch and torch.hip else None
    if built_for and built_for != _minor(machine.rocm):
        yield warning(
            "rocm", f"ROCm {machine.rocm} is installed, torch was built for {torch.hip if torch else ''}: kernels "
            "compiled here load the other's runtime",
            f"Install the torch for ROCm {_minor(machine.rocm)}, or set ROCM_PATH to a ROCm {built_for}.",
        )  # fmt: skip
    elif machine.hipcc is None:
        yield warning(
            "rocm", f"ROCm {machine.rocm} has no hipcc on the path: aiter cannot compile the kernels it lacks",
            "Add ROCm's bin folder to PATH.",
        )  # fmt: skip
    else:
        yield ok("rocm", f"{machine.rocm}, hipcc at {machine.hipcc}")


def _minor(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


CHECKS = (gpu, visible_gpus, device_variables, rocm)
