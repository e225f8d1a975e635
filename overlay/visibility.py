"""Which GPUs a process sees, by the variables that hide some. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from overlay.kfd import Gpu

ROCR = "ROCR_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
CUDA = "CUDA_VISIBLE_DEVICES"


def visible(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs in the order in which HIP numbers them.

    The ROCr runtime filters first; an empty list hides all from it. HIP then counts in what is left, takes CUDA's
    variable where its own is unset, and an empty one for unset.
    """
    seen = tuple(gpus)
    if ROCR in environ:
        seen = _chosen(seen, environ[ROCR])
    numbers = environ.get(HIP) or environ.get(CUDA)
    return _chosen(seen, numbers) if numbers else seen


def hiding(environ: Mapping[str, str]) -> str:
    """The variables that are set, as one would type them."""
    return " ".join(f"{name}={environ[name]}" for name in (ROCR, HIP, CUDA) if name in environ)


def _chosen(gpus: Sequence[Gpu], text: str) -> tuple[Gpu, ...]:
    """Numbers and GPU-<unique id> separated by commas; whatever follows the first that names nothing is ignored."""
    by_name = {str(number): gpu for number, gpu in enumerate(gpus)}
    by_name |= {f"gpu-{gpu.unique_id:016x}": gpu for gpu in gpus if gpu.unique_id}
    found: list[Gpu] = []
    for name in text.split(","):
        gpu = by_name.get(name.strip().lower())
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return tuple(found)
