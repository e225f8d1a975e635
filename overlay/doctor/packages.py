"""What is installed besides sglang, looked at without importing it: torch, aiter, sgl_kernel, wrapt."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from overlay.doctor.binary import inspect
from overlay.doctor.facts import Aiter, Binary, Kernels, Torch

#: aiter ships hundreds of kernels, gigabytes of them, all built in one go: a part speaks for the rest.
_SAMPLE_BYTES = 256 << 20


def package_folder(name: str) -> Path | None:
    """Where `import name` would find a package, or None. Only top-level names: nothing is imported to find them."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin and spec.submodule_search_locations else None


def distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch() -> Torch | None:
    """The constants its build wrote into torch/version.py."""
    folder = package_folder("torch")
    text = _text(folder / "version.py") if folder else None
    if text is None:
        return None
    constants = dict(re.findall(r"^(__version__|hip)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    return Torch(constants.get("__version__", "unknown"), constants.get("hip"))


def aiter(environ: Mapping[str, str]) -> Aiter | None:
    folder = package_folder("aiter")
    if folder is None:
        return None
    if not (folder / "ops").is_dir():
        return Aiter(str(folder), amd=False, asyncio_version=distribution("aiter"))
    return Aiter(
        str(folder),
        amd=True,
        version=distribution("amd-aiter"),
        asyncio_version=distribution("aiter"),
        shared_semaphore=_shared_semaphore(folder),
        blaslt_shapes=sum(map(_blaslt_shapes, _gemm_tables(folder, environ))),
        binaries=_sample(sorted(folder.glob("jit/*.so"))),
    )


def kernels() -> Kernels | None:
    folder = package_folder("sgl_kernel")
    return Kernels(str(folder), tuple(map(inspect, sorted(folder.rglob("*.so"))))) if folder else None


def wrapt() -> tuple[str | None, bool]:
    """The version of wrapt, and whether its C extension was built."""
    folder = package_folder("wrapt")
    return distribution("wrapt"), folder is not None and any(folder.glob("_wrappers*.so"))


def _shared_semaphore(folder: Path) -> bool | None:
    """Whether every stream of a device counts in one split-K semaphore. The fix keys it by stream (ROCm/aiter#3288)
    and is looked for in the source: builds from a branch carry any version."""
    text = _text(folder / "ops" / "gemm_op_a16w16.py") or ""
    return "_get_semaphore_workspace_keyed" not in text if "def get_semaphore_workspace" in text else None


def _gemm_tables(folder: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """The tables of tuned bf16 GEMMs that aiter would read (aiter/jit/core.py, get_config_file)."""
    chosen = environ.get("AITER_CONFIG_GEMM_BF16")
    if chosen:
        yield from map(Path, chosen.split(os.pathsep))
        return
    yield folder / "configs" / "bf16_tuned_gemm.csv"
    yield from sorted((folder / "configs" / "model_configs").glob("*bf16_tuned_gemm*.csv"))


def _blaslt_shapes(table: Path) -> int:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            return sum(row.get("libtype") == "hipblaslt" for row in csv.DictReader(stream))
    except (OSError, ValueError, csv.Error):  # a table that cannot be read tunes nothing
        return 0


def _sample(paths: Iterable[Path]) -> tuple[Binary, ...]:
    looked_at: list[Binary] = []
    left = _SAMPLE_BYTES
    for path in paths:
        size = path.stat().st_size if path.is_file() else 0
        if size <= left:
            left -= size
            looked_at.append(inspect(path))
    return tuple(looked_at)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
