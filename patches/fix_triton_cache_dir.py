"""DeepSeek-V4's Triton decode on ROCm, imported where sglang is installed read-only.

What is wrong upstream. `triton_mla_kernels_decode_dsv4.py:26` (#26208, 0.5.13) makes a folder `.triton_cache` beside
itself when it is imported, and makes it Triton's cache for the whole process. Where site-packages cannot be written
(read-only images, system installs, another user's environment) the first decode dies in that import, or, if the folder
came with the image, in Triton's first write. 0.5.14 dropped it.

How we know it is right. Where the folder can be written nothing changes. Where it cannot, the import runs as if it
could, and Triton keeps the cache it would have had without sglang.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant
from overlay.say import say

_ENTRY = Slot("sglang.srt.layers.attention.hip_flash_mla", "flash_mla_with_kvcache_entrypoint")
_KERNELS = "sglang.srt.layers.attention.nsa.triton_decode"
_BACKEND = "SGLANG_HACK_FLASHMLA_BACKEND"
_CACHE_DIR = "TRITON_CACHE_DIR"


def make_entrypoint(original: Any) -> Callable[..., Any]:
    """The choice among decode kernels, which imports the Triton ones before its first call. `hip_flash_mla` is the
    only importer they have."""
    imported = False

    def flash_mla_with_kvcache_entrypoint(backend: str, **kwargs: Any) -> Any:
        nonlocal imported
        if not imported and os.environ.get(_BACKEND) == "triton":
            _import_kernels()
            imported = True
        return original(backend, **kwargs)

    return flash_mla_with_kvcache_entrypoint


def _import_kernels() -> None:
    spec = importlib.util.find_spec(_KERNELS)
    if spec is None or spec.origin is None:
        return  # the caller is about to import it and to say so
    folder = os.path.join(os.path.dirname(spec.origin), ".triton_cache")
    if _writable(folder):
        return
    chosen = os.environ.get(_CACHE_DIR)
    with _makedirs_passes_over(folder):
        importlib.import_module(_KERNELS)
    if chosen is None:
        os.environ.pop(_CACHE_DIR, None)
        say(f"{folder} cannot be written: Triton keeps its own cache ({_own_cache()})")


def _writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _makedirs_passes_over(folder: str) -> Iterator[None]:
    """`os.makedirs` of this one folder does nothing meanwhile, in this import and in other threads alike."""
    makedirs = os.makedirs

    def passing(name: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
        if os.fspath(name) != folder:
            makedirs(name, mode, exist_ok)

    os.makedirs = passing
    try:
        yield
    finally:
        os.makedirs = makedirs


def _own_cache() -> Path:
    """Triton's default (knobs.py): `~/.triton/cache`, below TRITON_HOME if that is set."""
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def _where_the_kernels_are_chosen(facts: Facts) -> Need:
    if facts.environ.get(_BACKEND) != "triton":
        return Need(False, f"this release imports the Triton decode only with {_BACKEND}=triton")
    return Need(True, "back-port of 0.5.14: the Triton decode writes into site-packages when it is imported")


PATCH = Patch(
    id="fix-triton-cache-dir",
    title="DeepSeek-V4's Triton decode on a read-only install",
    why="With SGLANG_HACK_FLASHMLA_BACKEND=triton, 0.5.13 makes a cache folder inside its own package when the decode "
    "kernels are imported, and makes it Triton's cache: on a read-only install the first decode fails.",
    upstream=("#26208",),
    contained_since="0.5.14",
    versions=">=0.5.13,<0.5.14",
    variants=(
        Variant(
            name="folder-in-the-package",
            images=(Image.of(_ENTRY, "83bbc22a0ece7114"),),
            need=_where_the_kernels_are_chosen,
            targets=(Target(_ENTRY, Method.REPLACE, make_entrypoint),),
        ),
    ),
    verified_by="the real entry point of 0.5.13 over a package folder that refuses to be written: the import fails "
    "without the patch and succeeds with it, and nothing changes where the folder can be written",
    remove_when="0.5.14 is the oldest supported release",
)
