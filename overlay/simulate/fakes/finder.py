"""Imports a fake as if it were installed, in place of a real package of that name."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from overlay.simulate.fakes.catalogue import Package
from overlay.simulate.fakes.errors import UncoveredNameError
from overlay.simulate.settings import Arch

#: The modules that fill a package's catalogue, relative to this one. They import torch.
_CONTRACTS = {
    "aiter": (
        "aiter_values",
        "aiter_norm",
        "aiter_moe",
        "aiter_gemm",
        "aiter_rope",
        "aiter_mrope",
        "aiter_quant",
        "aiter_attention",
        "aiter_gfx95",
    ),
    "sgl_kernel": ("kernel_bodies", "kernel_signatures"),
}


def forbid(package: str) -> None:
    """Make `import package` fail as where it is not installed, and `find_spec` answer None."""
    sys.modules[package] = None  # type: ignore[assignment]


class FakeFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads every module of one fake."""

    def __init__(self, package: str, version: str, arch: Arch) -> None:
        self._package = package
        self._version = version
        self._arch = arch

    @functools.cached_property
    def _contents(self) -> Package:
        base = __name__.rpartition(".")[0]
        for name in _CONTRACTS[self._package]:
            importlib.import_module(f"{base}.{name}")
        catalogues = importlib.import_module(f"{base}.catalogues")
        package: Package = getattr(catalogues, self._package).at(self._version)
        return package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._package and not name.startswith(f"{self._package}."):
            return None
        modules, absent = self._contents.modules, self._contents.absent
        if name in modules:
            return ModuleSpec(name, self, is_package=any(module.startswith(f"{name}.") for module in modules))
        # `from package import name` asks for a module of that name once the package has said that it has no such name.
        if name.rpartition(".")[::2] in absent or any(f"{module}.".startswith(f"{name}.") for module, _ in absent):
            return None
        raise UncoveredNameError(f"the contract of {self._contents.label} does not say whether it has module {name}")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _FakeModule(spec.name, self._contents)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == self._package:
            vars(module)["__version__"] = self._version.removeprefix("v")


class _FakeModule(ModuleType):
    """A module whose contents come from a contract."""

    def __init__(self, name: str, package: Package) -> None:
        super().__init__(name)
        self.__package = package

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        package, here = self.__package, self.__name__
        make = package.modules[here].get(attribute)
        if make is not None:
            value = make()
        elif f"{here}.{attribute}" in package.modules:
            value = importlib.import_module(f"{here}.{attribute}")
        elif (here, attribute) in package.absent:
            raise AttributeError(f"{package.label} has no {here}.{attribute}")
        else:
            raise UncoveredNameError(f"the contract of {package.label} does not say whether it has {here}.{attribute}")
        setattr(self, attribute, value)
        return value
