"""The source text of an sglang, wherever it lies, read without importing anything.

A tree is a folder or a wheel that holds the package `sglang`. Reading a module that is not there gives None; one that
cannot be read gives an `UnreadableSourceError`, so that "missing" and "broken" are never confused.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Protocol

from overlay.errors import NoSglangError, SglangNotFoundError
from overlay.records import dataclass


class UnreadableSourceError(Exception):
    """A file of sglang exists and cannot be read as Python source."""


class SourceTree(Protocol):
    """What holds the package: `path` names it to the user."""

    @property
    def path(self) -> str: ...

    @property
    def checkout(self) -> bool:
        """Whether this is a working tree of git, whose version file is as old as its last build."""

    def holding(self, package: str) -> SourceTree | None:
        """The tree to read a top-level package from that sglang works with, or None if there is none."""

    def read(self, relative: str) -> bytes | None:
        """The bytes of a file given relative to the folder that holds `sglang/`; None if there is no such file."""

    def metadata(self) -> bytes | None:
        """The text of sglang's own `METADATA`, if the tree carries a dist-info."""


@dataclass(frozen=True)
class DirectoryTree:
    """An installed package, an unpacked wheel or a checkout."""

    root: Path

    @property
    def path(self) -> str:
        return str(self.root / "sglang")

    @property
    def checkout(self) -> bool:
        top = self.root.parent if self.root.name == "python" else self.root
        return (top / ".git").exists()

    def holding(self, package: str) -> SourceTree | None:
        return self

    def read(self, relative: str) -> bytes | None:
        try:
            return (self.root / relative).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnreadableSourceError(f"{self.root / relative}: {error.strerror or error}") from error

    def metadata(self) -> bytes | None:
        found = sorted(self.root.glob("sglang-*.dist-info/METADATA"))
        return self.read(str(found[-1].relative_to(self.root))) if found else None


@dataclass(frozen=True)
class InstalledTree(DirectoryTree):
    """The sglang that an interpreter imports by the path `search`. Its companions may lie elsewhere: AMD's images have
    aiter as an editable install."""

    search: tuple[str, ...]

    def holding(self, package: str) -> SourceTree | None:
        if package == "sglang":
            return self
        spec = _find_spec(package, self.search)
        locations: Iterable[str] = (spec and spec.submodule_search_locations) or ()
        folder = next(iter(locations), None)
        return DirectoryTree(Path(folder).absolute().parent) if folder else None


def module_file(module: str) -> tuple[str, str]:
    """The two files a module can be: `a/b.py` and `a/b/__init__.py`."""
    base = module.replace(".", "/")
    return f"{base}.py", f"{base}/__init__.py"


def read_module(tree: SourceTree, module: str) -> bytes | None:
    """The source of a module, or None if the tree, or where it finds the module's package, has no such module."""
    holder = tree.holding(module.partition(".")[0])
    if holder is None:
        return None
    for candidate in module_file(module):
        data = holder.read(candidate)
        if data is not None:
            return data
    return None


def installed_tree(search: Sequence[str] | None = None) -> SourceTree:
    """The sglang that `import sglang` finds on `search` (default: `sys.path`), without importing it.

    Raises SglangNotFoundError if there is none, or if something else of that name hides it.
    """
    path = tuple(sys.path if search is None else search)
    return InstalledTree(tree_of(_find_spec("sglang", path)).root, path)


def launch_search_path(arguments: Sequence[str]) -> list[str]:
    """`sys.path` as `python ARGUMENTS...` will see it: the working directory comes first for `-m`, the script's own
    folder for a script, and neither under -I, -P or PYTHONSAFEPATH."""
    if getattr(sys.flags, "safe_path", sys.flags.isolated):
        return list(sys.path)
    first = "" if arguments[:1] == ["-m"] or not arguments else os.path.dirname(os.path.abspath(arguments[0]))
    return [first, *sys.path[1:]]


def tree_of(spec: ModuleSpec | None) -> DirectoryTree:
    """The tree behind an import spec of the package sglang."""
    if spec is None:
        raise NoSglangError(
            f"sglang is not installed for {sys.executable}. Install it into this environment, or run amd-sglang with "
            "the Python of the environment that has it."
        )
    locations: Iterable[str] = spec.submodule_search_locations or ()
    folder = next(iter(locations), spec.origin or "?")
    if spec.origin is None or not spec.submodule_search_locations:
        kind = "a folder without __init__.py" if spec.submodule_search_locations else "a single file"
        raise SglangNotFoundError(
            f"`import sglang` finds {kind} at {folder}, not the package. Rename it or change to another directory."
        )
    root = Path(folder).absolute().parent
    if not (root / "sglang" / "srt").is_dir():
        raise SglangNotFoundError(
            f"`import sglang` finds {folder}, which has no `srt` inside: it hides the real package (the working "
            "directory comes first on the path). Rename it or change to another directory."
        )
    return DirectoryTree(root)


def _find_spec(package: str, search: Sequence[str]) -> ModuleSpec | None:
    """`importlib.util.find_spec` on a given path, through every finder (editable installs register their own)."""
    saved = sys.path
    sys.path = list(search)
    try:
        loaded = sys.modules.get(package)
        if loaded is not None:
            return loaded.__spec__
        return importlib.util.find_spec(package)
    finally:
        sys.path = saved
