"""Ways in which the overlay lies on a machine, each with a Python of its own, and a probe that says whether it started.

An environment here is a virtual environment without pip whose packages are the ones of the Python that runs the tests,
taken in one by one: nothing else of that Python, and above all not the overlay installed there, can answer for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import overlay

ROOT = Path(overlay.__file__).parents[1]
_PURELIB = Path(sysconfig.get_path("purelib"))
_SOURCES = ("overlay", "patches", "launcher.py", "pyproject.toml", "README.md", "LICENSE")

#: Says whether the overlay was started in this interpreter before its first statement.
PROBE = "import sys; print('started' if 'overlay.boot' in sys.modules else 'untouched', flush=True)\n"


@dataclass(frozen=True)
class Installation:
    """One overlay and the Python that has it, or runs it from a checkout."""

    kind: str
    python: Path
    checkout: Path

    @property
    def site(self) -> Path:
        return next(self.python.parents[1].glob("lib/python3.*/site-packages"))

    def environ(self, **added: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AMD_SGLANG_", "PYTHON", "VIRTUAL_ENV"))}
        return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **added}

    def handover(self, *flags: str) -> dict[str, str]:
        """What the launcher of this installation gives to its children."""
        return dict(_handover(self, flags))

    def run(self, *arguments: str, environ: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """The standard output of a program, below the launcher of this installation unless `environ` says otherwise."""
        given = self.handover() if environ is None else environ
        done = subprocess.run(
            [self.python, *arguments], env=given, cwd=cwd or self.python.parents[1], capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def environment(folder: Path) -> Installation:
    """A virtual environment with what the overlay depends on, and without the overlay."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    made = Installation("bare", folder / "bin" / "python", folder)
    for name in ("click", "packaging", "wrapt"):
        (made.site / name).symlink_to(_PURELIB / name)
    return made


def copy_sources(folder: Path) -> Path:
    """The sources as a release has them, so that nothing is built in the working tree."""
    folder.mkdir()
    for name in _SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def build_wheel(sources: Path, out: Path, *, editable: bool = False) -> Path:
    """A wheel, by the build backend itself; editable ones too, which `python -m build` does not make."""
    hook = "build_editable" if editable else "build_wheel"
    code = f"import sys; from hatchling import build; build.{hook}(sys.argv[1])"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=sources, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def install(wheel: Path, into: Installation, kind: str, checkout: Path) -> Installation:
    """Unpack a pure wheel into site-packages, which is what installing one does to them."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into.site)
    return Installation(kind, into.python, checkout)


@cache
def _handover(installation: Installation, flags: tuple[str, ...]) -> dict[str, str]:
    code = "import json, os; from overlay import delivery; print(json.dumps(delivery.environment(dict(os.environ))))"
    if installation.kind == "checkout":
        # Some flags leave the working directory out.
        code = f"import sys; sys.path.append({str(installation.checkout)!r}); {code}"
    done = subprocess.run(
        [installation.python, *flags, "-c", code], env=installation.environ(), cwd=installation.checkout,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    given: dict[str, str] = json.loads(done.stdout)
    return given
