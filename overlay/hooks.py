"""Calls back once every module of a set has executed, whoever imports them and in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import wrapt

Arrived = Callable[[Mapping[str, ModuleType]], None]


class _Group:
    def __init__(self, modules: Iterable[str], arrived: Arrived) -> None:
        self._missing = set(modules)
        self._present: dict[str, ModuleType] = {}
        self._arrived = arrived

    def __call__(self, module: ModuleType) -> None:
        self._present[module.__name__] = module
        self._missing.discard(module.__name__)
        if not self._missing:
            self._arrived(self._present)


def when_executed(modules: Iterable[str], arrived: Arrived) -> None:
    """Call `arrived({name: module})` the moment the last of `modules` has executed, before its importer goes on.

    wrapt drops a hook that raises and the next import of the module succeeds, so `arrived` must not raise anything
    that an importer could swallow.
    """
    names = sorted(set(modules))
    group = _Group(names, arrived)
    for name in names:
        wrapt.register_post_import_hook(group, name)
