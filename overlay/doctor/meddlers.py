"""Who else reaches into sglang: start files of Python that know it, and sglang's own plugins."""

from __future__ import annotations

import importlib.metadata
import re
import site
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from overlay import delivery
from overlay.doctor.facts import Meddler

#: srt/plugins/__init__.py of 0.5.11 and later: whatever registers there may hook any function of sglang.
PLUGIN_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")
_OURS = "amd_sglang_overlay.pth"


def meddlers(search: Sequence[str]) -> tuple[Meddler, ...]:
    """Everything found for an interpreter with this path, none of it imported."""
    return (*start_lines(site_folders(), search), *customizers(search), *plugins())


def site_folders() -> list[Path]:
    """Where Python looks for .pth files."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(folder) for folder in (*site.getsitepackages(), *user)]


def start_lines(folders: Iterable[Path], search: Sequence[str]) -> Iterator[Meddler]:
    """Import lines of .pth files that name sglang, or import a module whose text does."""
    for path in sorted(file for folder in folders for file in folder.glob("*.pth") if file.name != _OURS):
        for line in _read(path).splitlines():
            found = re.match(r"import[ \t]+(\w+)", line)
            if found and ("sglang" in line or "sglang" in _source_of(found[1], search)):
                yield Meddler("start file", path.name, str(path))
                break


def customizers(search: Sequence[str]) -> Iterator[Meddler]:
    """The user's own sitecustomize and usercustomize, if they know sglang. Ours hands over to it."""
    others = [entry for entry in search if Path(entry).absolute() != Path(delivery.__file__).parent]
    for name in ("sitecustomize", "usercustomize"):
        if "sglang" in _source_of(name, others):
            spec = PathFinder.find_spec(name, others)
            yield Meddler("start file", name, str(spec.origin) if spec else "")


def plugins() -> Iterator[Meddler]:
    for group in PLUGIN_GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            yield Meddler(group, entry.name, f"{entry.value} of {entry.dist.name if entry.dist else 'unknown'}")


def _source_of(module: str, search: Sequence[str]) -> str:
    spec = PathFinder.find_spec(module, list(search))
    return _read(Path(spec.origin)) if spec is not None and spec.origin and spec.origin.endswith(".py") else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
