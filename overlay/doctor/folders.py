"""The folders that a server on ROCm writes to, and whether it can."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from overlay import status
from overlay.doctor.facts import Aiter, Folder


def folders(environ: Mapping[str, str], aiter: Aiter | None, redirected: bool) -> tuple[Folder, ...]:
    """`redirected`: whether this sglang moves the caches of others below its own (srt/environ.py:2325, 0.5.23)."""
    wanted = (*_common(environ, redirected), *_of_aiter(environ, aiter))
    return tuple(Folder(purpose, path, variable, can_write(path)) for purpose, path, variable in wanted)


def can_write(path: Path) -> bool:
    """Whether files can be made in a folder, or in the folder that would have to be made for it. Asks the kernel, so
    that a read-only mount counts although the mode bits would allow it; writes nothing."""
    # os.path.exists: below a folder that may not be entered, Path.exists raises.
    existing = next((one for one in (path, *path.parents) if os.path.exists(one)), Path("/"))
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def _common(environ: Mapping[str, str], redirected: bool) -> Iterator[tuple[str, Path, str]]:
    """Purpose, folder, and the variable that moves it, with the defaults of whoever writes there."""
    home = _home(environ)
    temporary = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    yield "the overlay's status files", status.run_root(environ), "AMD_SGLANG_RUN_DIR"
    yield "temporary files", temporary, "TMPDIR"
    own = _given(environ, "SGLANG_CACHE_DIR", home / ".cache/sglang")
    yield "sglang's cache", own, "SGLANG_CACHE_DIR"
    # triton/knobs.py, cache_knobs
    triton = own / "triton" if redirected else Path(environ.get("TRITON_HOME") or home) / ".triton/cache"
    yield "compiled Triton kernels", _given(environ, "TRITON_CACHE_DIR", triton), "TRITON_CACHE_DIR"
    # torch/_inductor/runtime/cache_dir_utils.py
    inductor = own / "inductor" if redirected else temporary / f"torchinductor_{_user()}"
    yield "torch.compile", _given(environ, "TORCHINDUCTOR_CACHE_DIR", inductor), "TORCHINDUCTOR_CACHE_DIR"
    # tvm_ffi/cpp/extension.py, which sglang's own kernels are compiled through
    compiled = home / ".cache/tvm-ffi"
    yield "sglang's compiled kernels", _given(environ, "TVM_FFI_CACHE_DIR", compiled), "TVM_FFI_CACHE_DIR"


def _of_aiter(environ: Mapping[str, str], aiter: Aiter | None) -> Iterator[tuple[str, Path, str]]:
    """aiter/jit/core.py get_user_jit_dir: a package that cannot be written is copied into the home as a whole."""
    if aiter is None or not aiter.amd:
        return
    home, package = _home(environ), Path(aiter.path) / "jit"
    default = package if can_write(package) else home / ".aiter/jit"
    yield "aiter's kernels", _given(environ, "AITER_JIT_DIR", default), "AITER_JIT_DIR"
    yield "aiter's templated kernels", _given(environ, "AITER_ROOT_DIR", home / ".aiter"), "AITER_ROOT_DIR"


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))


def _given(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    return Path(environ.get(variable) or default).expanduser().absolute()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id that has no name
        return str(os.getuid())
