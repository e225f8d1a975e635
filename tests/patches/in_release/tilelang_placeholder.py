"""A placeholder for TileLang, where there is none: sglang imports it even where it never runs it.

Hand-written: the names that `sglang.srt.layers.mhc` and its kin touch while they are imported. No kernel can be called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class NotInstalledError(Exception):
    """Raised by every kernel: TileLang is a placeholder here."""


class _Names:
    """Hands out a name for every attribute, such as the keys of a pass configuration."""

    def __getattr__(self, name: str) -> str:
        return name


def _jit(function: Callable[..., Any] | None = None, **_options: object) -> Any:
    """`@jit` and `@jit(...)`: a kernel factory that can be defined and not called."""

    def decorate(factory: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(*_: object, **__: object) -> None:
            raise NotInstalledError(f"{factory.__module__}.{factory.__qualname__}")

        return kernel

    return decorate if function is None else decorate(function)


def provide_tilelang() -> None:
    """Make `import tilelang` work in this process, unless there is a real one."""
    if "tilelang" in sys.modules or importlib.util.find_spec("tilelang") is not None:
        return
    tilelang = importlib.util.module_from_spec(ModuleSpec("tilelang", None, is_package=True))
    language: ModuleType = importlib.util.module_from_spec(ModuleSpec("tilelang.language", None))
    vars(tilelang).update(
        jit=_jit, JITKernel=object, set_log_level=lambda level: None, PassConfigKey=_Names(), language=language
    )
    sys.modules |= {"tilelang": tilelang, "tilelang.language": language}
