"""Digests of the slots of one source tree."""

from __future__ import annotations

import ast

from overlay import fingerprint
from overlay.model import Slot
from overlay.source import SourceTree, UnreadableSourceError, read_module


class Observer:
    """Digests of slots of one tree; each module is read and parsed once.

    `simulated` says that nothing but sglang is real: the simulation's aiter has no source, whatever is installed.
    """

    def __init__(self, tree: SourceTree, *, simulated: bool = False) -> None:
        self._tree = tree
        self._simulated = simulated
        self._observed: dict[Slot, str] = {}
        self._modules: dict[str, ast.Module | str] = {}

    def observe(self, slot: Slot) -> str:
        if slot not in self._observed:
            module = self._module(slot.module)
            self._observed[slot] = module if isinstance(module, str) else fingerprint.observe(module, slot.qualname)
        return self._observed[slot]

    def _module(self, name: str) -> ast.Module | str:
        if name not in self._modules:
            try:
                here = name.partition(".")[0] == "sglang" or not self._simulated
                source = read_module(self._tree, name) if here else None
            except UnreadableSourceError:
                self._modules[name] = fingerprint.UNREADABLE
            else:
                self._modules[name] = (
                    fingerprint.NO_MODULE if source is None else fingerprint.parse(source) or fingerprint.UNREADABLE
                )
        return self._modules[name]
