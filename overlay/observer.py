"""Digests of the slots of one source tree."""

from __future__ import annotations

from overlay import fingerprint, known_sources
from overlay.model import Slot
from overlay.sighting import Memory, SourceFile
from overlay.source import SourceTree, UnreadableSourceError, read_module


class Observer:
    """Digests of slots of one tree; each module is read once, and parsed at most once.

    `simulated` says that nothing but sglang is real: the simulation's aiter has no source, whatever is installed.
    `memory` is what is known of files by their content; an empty one has every file parsed.
    """

    def __init__(self, tree: SourceTree, *, simulated: bool = False, memory: Memory | None = None) -> None:
        self._tree = tree
        self._simulated = simulated
        self._memory = known_sources.memory() if memory is None else memory
        self._files: dict[str, SourceFile | str] = {}

    def observe(self, slot: Slot) -> str:
        file = self._file(slot.module)
        return file if isinstance(file, str) else file.sighting(slot.qualname).observed

    def _file(self, module: str) -> SourceFile | str:
        """A module's file, or the observation that stands for every slot of a module without one."""
        if module not in self._files:
            self._files[module] = self._read(module)
        return self._files[module]

    def _read(self, module: str) -> SourceFile | str:
        if self._simulated and module.partition(".")[0] != "sglang":
            return fingerprint.NO_MODULE
        try:
            source = read_module(self._tree, module)
        except UnreadableSourceError:
            return fingerprint.UNREADABLE
        return fingerprint.NO_MODULE if source is None else SourceFile(source, self._memory)
