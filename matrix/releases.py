"""The published releases of sglang as source trees: downloaded through pip, neither installed nor imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.version import Version

from demo.layout import BASE_RELEASE, CACHE, LOGS, RELEASES, ROOT, site_packages
from demo.progress import task
from demo.steps import ProvisionError, run_command
from overlay.source import DirectoryTree, SourceTree
from overlay.wheel import WheelTree

#: The oldest release that any patch is for.
OLDEST = "0.5.6.post2"
WHEELS = CACHE / "wheels"
_HEADING = "Available versions:"


def published() -> tuple[str, ...]:
    """Every release from OLDEST on that the package index of pip's settings has, oldest first.

    Raises ProvisionError if the index cannot be asked.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "sglang"], capture_output=True, text=True, check=False
    )
    listed = [line.removeprefix(_HEADING) for line in asked.stdout.splitlines() if line.startswith(_HEADING)]
    if not listed:
        tail = (asked.stderr.strip().splitlines() or ["no output"])[-1]
        raise ProvisionError(f"pip index versions sglang found no release ({tail}). See `pip config list`.")
    versions = [text.strip() for text in listed[0].split(",")]
    return in_order(text for text in versions if Version(text) >= Version(OLDEST))


def in_order(versions: Iterable[str]) -> tuple[str, ...]:
    """Releases by age."""
    return tuple(sorted(versions, key=Version))


def tree(release: str) -> SourceTree:
    """The source of a release: the provisioned one, else a wheel that is downloaded once. Raises ProvisionError."""
    provisioned = site_packages() if release == BASE_RELEASE else RELEASES / release
    if (provisioned / "sglang").is_dir():
        return DirectoryTree(provisioned)
    return WheelTree(wheel(release))


def wheel(release: str) -> Path:
    """The wheel of a release, downloaded once. Raises ProvisionError."""
    return _cached(release) or _download(release)


def _cached(release: str) -> Path | None:
    return next(iter(sorted(WHEELS.glob(f"sglang-{release}-*.whl"))), None)


def _download(release: str) -> Path:
    partial = WHEELS / f".partial-{release}"
    shutil.rmtree(partial, ignore_errors=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar=off"]
    with task(f"downloading sglang {release}", hint="10 s, up to 40 MB"):
        command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", partial, f"sglang=={release}"]
        run_command(command, LOGS / f"wheel-{release}.log", cwd=ROOT)
    (wheel,) = partial.glob("*.whl")
    kept = wheel.rename(WHEELS / wheel.name)
    partial.rmdir()
    return kept
