"""What a faked package consists of, by version, and what a call of one of its functions does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from overlay.simulate.counters import count
from overlay.simulate.fakes.errors import MissingBodyError

Body = Callable[..., Any]
AnyBody = TypeVar("AnyBody", bound=Body)


@dataclass(frozen=True)
class Entry:
    """One name of a package: where it is defined, which modules show it too, in which versions, and how it is made."""

    name: str
    shown_in: tuple[str, ...]
    versions: frozenset[str]
    make: Callable[[], object]

    def places(self) -> tuple[tuple[str, str], ...]:
        """(module, attribute), the definition first."""
        module, _, attribute = self.name.rpartition(".")
        return tuple((m, attribute) for m in (module, *self.shown_in))


@dataclass(frozen=True)
class Package:
    """One version of a package: its modules with their contents, and the names that only other versions have."""

    label: str
    modules: Mapping[str, Mapping[str, Callable[[], object]]]
    absent: frozenset[tuple[str, str]]


class Catalogue:
    """The contract of one package over the versions somebody checked it for."""

    def __init__(self, package: str, versions: tuple[str, ...]) -> None:
        self._package = package
        self._versions = versions
        self._entries: list[Entry] = []
        self._modules: set[str] = {package}

    def module(self, name: str) -> None:
        """Declare a module that sglang imports as a whole; of its names only those declared besides can be used."""
        self._modules.add(name)

    def function(
        self,
        name: str,
        parameters: str | None = None,
        *,
        shown_in: tuple[str, ...] = (),
        first: str | None = None,
        last: str | None = None,
    ) -> Callable[[AnyBody], AnyBody]:
        """Declare a function and its PyTorch body, which is the decorated function.

        `name` is the full dotted name of the definition; the contract holds from version `first` to version `last`.
        The signature is that of the body, or `parameters`, written as in a `def`: then the body gets every argument
        by name, and takes those that need no thought as keywords.
        """

        def declare(body: AnyBody) -> AnyBody:
            signature = inspect.signature(body) if parameters is None else _parsed(parameters)
            bound = bind(name, signature, body)
            self._add(name, shown_in, first, last, lambda: bound)
            return body

        return declare

    def signature(
        self,
        name: str,
        parameters: str,
        *,
        shown_in: tuple[str, ...] = (),
        first: str | None = None,
        last: str | None = None,
    ) -> None:
        """Declare a function that sglang imports and that has no body here. `parameters` as in a `def`; `...` stands
        for a default value, which nothing uses."""
        bound = bind(name, _parsed(parameters), None)
        self._add(name, shown_in, first, last, lambda: bound)

    def value(
        self,
        name: str,
        make: Callable[[], object],
        *,
        shown_in: tuple[str, ...] = (),
        first: str | None = None,
        last: str | None = None,
    ) -> None:
        """Declare anything else. `make` is called when the name is first used."""
        self._add(name, shown_in, first, last, functools.cache(make))

    def _add(
        self, name: str, shown_in: tuple[str, ...], first: str | None, last: str | None, make: Callable[[], object]
    ) -> None:
        start = 0 if first is None else self._versions.index(first)
        stop = len(self._versions) if last is None else self._versions.index(last) + 1
        self._entries.append(Entry(name, shown_in, frozenset(self._versions[start:stop]), make))

    def at(self, version: str) -> Package:
        """The package as of one version."""
        modules: dict[str, dict[str, Callable[[], object]]] = {name: {} for name in self._modules}
        elsewhere: set[tuple[str, str]] = set()
        for entry in self._entries:
            if version not in entry.versions:
                elsewhere.update(entry.places())
                continue
            for module, attribute in entry.places():
                modules.setdefault(module, {})[attribute] = entry.make
        for module in list(modules):
            while "." in module:
                module = module.rpartition(".")[0]
                modules.setdefault(module, {})
        present = {(module, attribute) for module, names in modules.items() for attribute in names}
        return Package(f"{self._package} {version}", modules, frozenset(elsewhere - present))


def _parsed(parameters: str) -> inspect.Signature:
    return inspect.signature(eval(f"lambda {parameters}: None"))


def bind(name: str, signature: inspect.Signature, body: Body | None) -> Body:
    """A function that takes exactly the arguments of `signature`, is counted, and runs `body`.

    Raises TypeError for arguments the real function would not take, MissingBodyError if there is no body.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}{signature}: {error}") from None
        count(name)
        if body is None:
            raise MissingBodyError(f"{name}{signature} has no body in the simulation")
        bound.apply_defaults()
        return body(**bound.arguments)

    call.__module__, _, call.__name__ = name.rpartition(".")
    call.__qualname__ = call.__name__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call
