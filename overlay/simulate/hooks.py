"""Waits for the modules the simulation changes, and changes each one the moment it has executed."""

from __future__ import annotations

import importlib.abc
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from overlay.simulate.settings import RUN_DIR, SIMULATE, Arch, arch_named, simulated_aiter, simulated_kernels

Action = Callable[[ModuleType], None]

#: Where `load_jit` has been defined: up to 0.5.15, in 0.5.16, in 0.5.17, and since.
_JIT_LOADERS = (
    "sglang.jit_kernel.utils",
    "sglang.jit_kernel.utils.compile",
    "sglang.kernels.jit.utils.compile",
    "sglang.kernels.jit.utils.compile.loader",
)


def arm(environ: Mapping[str, str]) -> None:
    """Put the import hooks in place, unless they are."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    arch = arch_named(environ.get(SIMULATE, ""))
    aiter = simulated_aiter(environ)
    if environ.get(RUN_DIR):
        from overlay.simulate.reporter import Reporter

        Reporter(Path(environ[RUN_DIR]), arch.name, aiter)
    from overlay.simulate.fakes.finder import FakeFinder, forbid

    if aiter is None:
        forbid("aiter")
    else:
        sys.meta_path.insert(0, FakeFinder("aiter", aiter, arch))
    sys.meta_path.insert(0, FakeFinder("sgl_kernel", simulated_kernels(), arch))
    actions = _actions(arch)
    sys.meta_path.insert(0, _AfterImport(actions))
    for name, action in actions.items():
        if name in sys.modules:
            action(sys.modules[name])


def _actions(arch: Arch) -> dict[str, Action]:
    """What is done to which module. The code that does it imports the module it changes, so it is loaded here."""

    def logging_(_: ModuleType) -> None:
        from overlay.simulate.announce import mark_log_lines

        mark_log_lines(f"[simulated {arch.name}]")

    def torch(_: ModuleType) -> None:
        from overlay.simulate import banner, torch_runtime
        from overlay.simulate.announce import print_banner

        torch_runtime.apply(arch)
        print_banner(banner())

    def triton(_: ModuleType) -> None:
        from overlay.simulate import triton_runtime

        triton_runtime.apply(arch)

    def jit(loader: ModuleType) -> None:
        from overlay.simulate import jit_kernels

        jit_kernels.apply(loader)

    return {"logging": logging_, "torch": torch, "triton": triton, **dict.fromkeys(_JIT_LOADERS, jit)}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, with an action attached to its loader."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self._actions = actions
        self._local = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Another finder of this kind (wrapt's) asks the whole of sys.meta_path again from inside its own find_spec.
        if name not in self._actions or name in self._busy():
            return None
        self._busy().add(name)
        try:
            spec = self._others(name, path, target)
        finally:
            self._busy().discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._actions[name])
        return spec

    def _busy(self) -> set[str]:
        names: set[str] = self._local.__dict__.setdefault("names", set())
        return names

    def _others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs the module by its own loader, gives that loader back to it, then acts."""

    def __init__(self, real: importlib.abc.Loader, action: Action) -> None:
        self._real = real
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # `inspect` and `linecache` read a module's source through its loader: it must find the real one.
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        self._action(module)
