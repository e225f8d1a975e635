"""torch, aiter, sgl_kernel and wrapt: the right ones, built for this GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from overlay import aiter_switch, visibility
from overlay.doctor.facts import Binary, Facts
from overlay.doctor.finding import Finding, error, info, ok, warning
from overlay.errors import MalformedSwitchError

_ROCM_TORCH = "Install a ROCm build of torch, or use AMD's sglang image; `pip install sglang` brings torch for CUDA."
_AMD_AITER = "Run `pip uninstall -y aiter` and install amd-aiter again, or set SGLANG_USE_AITER=0."


def torch(facts: Facts) -> Iterator[Finding]:
    if facts.torch is None:
        yield error("torch", "there is no torch in this Python", _ROCM_TORCH)
    elif facts.platform.simulated:
        yield ok("torch", f"{facts.torch.version}, told to be a ROCm build by the simulation")
    elif facts.torch.hip is None:
        yield error(
            "torch", f"{facts.torch.version} is not built for ROCm: sglang takes no AMD path and no patch applies",
            _ROCM_TORCH,
        )  # fmt: skip
    else:
        yield ok("torch", f"{facts.torch.version}, HIP {facts.torch.hip}")


def asks_for_aiter(facts: Facts) -> bool:
    """Whether the server would use aiter. A launch spells the variable as 1 or 0."""
    return facts.environ.get(aiter_switch.NAME) == "1"


def aiter_spelling(facts: Facts) -> Iterator[Finding]:
    try:
        note = aiter_switch.note(facts.given)
    except MalformedSwitchError:  # among the errors of the switches already
        return
    if note:
        yield info("aiter-switch", note, f"Write {aiter_switch.NAME}={facts.environ[aiter_switch.NAME]}.")


def aiter(facts: Facts) -> Iterator[Finding]:
    """AMD's distribution is `amd-aiter`; PyPI's `aiter` is asyncio helpers with the same import name."""
    found = facts.aiter
    if found is None:
        if asks_for_aiter(facts):
            yield error(
                "aiter", f"{aiter_switch.NAME} is on, and there is no aiter to import",
                f"Install amd-aiter, or set {aiter_switch.NAME}=0.",
            )  # fmt: skip
        else:
            yield info("aiter", "not installed: sglang and the patches use Triton instead")
    elif not found.amd:
        name = f"aiter {found.asyncio_version}" if found.asyncio_version else "aiter"
        wrong = f"{found.path} is PyPI's asyncio package {name}, not AMD's kernels"
        yield error("aiter", wrong, _AMD_AITER) if asks_for_aiter(facts) else warning("aiter", wrong, _AMD_AITER)
    elif found.asyncio_version:
        yield error(
            "aiter", f"amd-aiter and PyPI's aiter {found.asyncio_version} are both installed, into the one folder "
            f"{found.path}: each has overwritten files of the other", _AMD_AITER,
        )  # fmt: skip
    else:
        lacking = _lacking(facts, found.binaries)
        if lacking:
            # Such a module imports on any GPU and ends the process at the first launch (ROCm/aiter#3846).
            yield error(
                "aiter", f"its prebuilt kernels have code for {_names(found.binaries)}, not for {lacking}",
                f"Install an amd-aiter built for {lacking}, or set AITER_JIT_DIR to an empty folder so that it "
                "compiles its own.",
            )  # fmt: skip
        else:
            yield ok("aiter", f"amd-aiter {found.version or 'of unknown version'}")


def sgl_kernel(facts: Facts) -> Iterator[Finding]:
    found = facts.kernels
    rocm = facts.torch is not None and facts.torch.hip is not None
    if facts.platform.simulated:
        return
    build = "Build it in sglang's source: `cd sgl-kernel && AMDGPU_TARGET={} python setup_rocm.py install`.".format(
        facts.platform.arch or "gfx942"
    )
    if found is None:
        yield error("sgl_kernel", "not installed", build) if rocm else info("sgl_kernel", "not installed")
        return
    if not found.binaries:
        yield error("sgl_kernel", f"{found.path} has no extension module", build)
        return
    for_cuda = [binary for binary in found.binaries if binary.cuda and not binary.hip]
    lacking = _lacking(facts, found.binaries)
    if for_cuda and rocm:
        yield error("sgl_kernel", f"{for_cuda[0].path.name} is built for CUDA, as PyPI's sgl-kernel wheel is", build)
    elif lacking:
        yield error("sgl_kernel", f"it has code for {_names(found.binaries)}, not for {lacking}", build)
    elif not _names(found.binaries):
        why = "its code is in compressed bundles" if any(b.sealed for b in found.binaries) else "it names none"
        yield info("sgl_kernel", f"the architectures it was built for cannot be read: {why}")
    else:
        yield ok("sgl_kernel", f"built for {_names(found.binaries)}")


def wrapt(facts: Facts) -> Iterator[Finding]:
    if facts.wrapt is None:
        yield error("wrapt", "not installed: the overlay cannot hook imports", "Run `pip install 'wrapt>=1.17'`.")
    elif not facts.wrapt_extension or facts.environ.get("WRAPT_DISABLE_EXTENSIONS"):
        yield info(
            "wrapt", f"{facts.wrapt} without its C extension: constructors wrapped by patches are a little slower, "
            "nothing else is",
            "Unset WRAPT_DISABLE_EXTENSIONS, or reinstall wrapt from a wheel.",
        )  # fmt: skip
    else:
        yield ok("wrapt", f"{facts.wrapt} with its C extension")


def _lacking(facts: Facts, binaries: Sequence[Binary]) -> str | None:
    """An architecture in sight that none of the binaries has code for. Where names cannot be read, or there are none,
    nothing is proved."""
    built = {arch for binary in binaries for arch in binary.archs}
    if not built or any(binary.sealed for binary in binaries):
        return None
    return min({gpu.arch for gpu in visibility.visible(facts.machine.gpus, facts.environ)} - built, default=None)


def _names(binaries: Iterable[Binary]) -> str:
    return ", ".join(sorted({arch for binary in binaries for arch in binary.archs}))


CHECKS = (torch, aiter_spelling, aiter, sgl_kernel, wrapt)
