"""The source text of an sglang inside a wheel that was not unpacked."""

from __future__ import annotations

import fnmatch
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from overlay.errors import SglangNotFoundError
from overlay.source import SourceTree, UnreadableSourceError

#: What a truncated, overwritten or encrypted archive makes zipfile raise.
_DAMAGED = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class WheelTree:
    """A wheel that was not unpacked."""

    wheel: Path

    @property
    def path(self) -> str:
        return str(self.wheel)

    @property
    def checkout(self) -> bool:
        return False

    def holding(self, package: str) -> SourceTree | None:
        return self

    def read(self, relative: str) -> bytes | None:
        try:
            return self._archive().read(relative)
        except KeyError:
            return None
        except _DAMAGED as error:
            raise UnreadableSourceError(f"{self.wheel}!{relative}: {error}") from error

    def metadata(self) -> bytes | None:
        try:
            names = [n for n in self._archive().namelist() if fnmatch.fnmatch(n, "sglang-*.dist-info/METADATA")]
        except _DAMAGED as error:
            raise UnreadableSourceError(f"{self.wheel}: {error}") from error
        return self.read(names[0]) if names else None

    def _archive(self) -> zipfile.ZipFile:
        now = self.wheel.stat()
        return _opened(self.wheel, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=4)
def _opened(wheel: Path, _changed: int, _size: int) -> zipfile.ZipFile:
    """A wheel, open as long as nobody touches it: the list of its 6,000 members takes 30 ms to read."""
    return zipfile.ZipFile(wheel)


def open_wheel(wheel: Path, given: str) -> WheelTree:
    """The tree in a wheel that the user named as `given`. Raises SglangNotFoundError if there is none in it."""
    if not zipfile.is_zipfile(wheel):
        raise SglangNotFoundError(f"--sglang {given}: not a zip archive. Give an intact wheel or an unpacked tree.")
    tree = WheelTree(wheel)
    if tree.read("sglang/__init__.py") is None:
        raise SglangNotFoundError(f"--sglang {given}: this wheel does not contain the package sglang.")
    return tree
