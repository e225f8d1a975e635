"""Make the environment of the demo and the tests: ``python3 -m demo.provision [--release VERSION]...``.

Run by the system's Python with the standard library only. `.venv` gets torch, the pinned packages the real sglang needs
to serve on a CPU, sglang 0.5.9 itself, the development tools and the overlay; `.releases/VERSION` gets any further
release of sglang. Each step is stamped, so an interrupted run resumes and a finished one costs nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.layout import (
    BASE_RELEASE,
    CACHE,
    LOGS,
    RELEASES,
    REQUIREMENTS,
    ROOT,
    TORCH,
    VENV,
    VENV_PYTHON,
    site_packages,
)
from demo.progress import elapsed_text
from demo.steps import ProvisionError, Step, pending, run_command, run_pending

#: sglang 0.5.23 has wheels from cp311 on; the pinned set was resolved for 3.11 and has wheels for both.
SUPPORTED_PYTHONS = ((3, 11), (3, 12))
VENV_BYTES = 4 << 30
RELEASE_BYTES = 512 << 20
_STAMPS = VENV / ".provision"
_PYTHON_TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
_PIP: tuple[str | Path, ...] = (VENV_PYTHON, "-m", "pip", "install", "--no-input", "--no-compile", "--progress-bar=off")


def check_python(version: tuple[int, int], executable: str) -> None:
    """Raise ProvisionError unless this Python is one that every pinned package has wheels for."""
    if version not in SUPPORTED_PYTHONS:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
        raise ProvisionError(
            f"Python {version[0]}.{version[1]} ({executable}) is not supported: the pinned wheels need {wanted}.\n"
            "Name another one, for example: make PYTHON=python3.11 demo"
        )


def check_disk(needed: int, place: Path) -> None:
    """Raise ProvisionError when the file system of ``place`` has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ProvisionError(
            f"{free / 2**30:.1f} GiB free at {place}, but {needed / 2**30:.1f} GiB are needed "
            "(more where the index serves a CUDA build of torch). Free some space, then run again."
        )


def compile_all(log: Path, *folders: Path) -> None:
    """Byte-compile with every core. The exit status says nothing: some packages ship templates that do not compile."""
    run_command([VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", *folders], log, cwd=ROOT, check=False)


def venv_steps() -> list[Step]:
    """The steps that make `.venv`, in order."""

    def create() -> None:
        run_command([sys.executable, "-m", "venv", "--clear", VENV], LOGS / "venv.log", cwd=ROOT)

    def install(name: str, *arguments: str | Path) -> None:
        run_command([*_PIP, *arguments], LOGS / f"{name}.log", cwd=ROOT)

    pins, tools, project = REQUIREMENTS / "sim.txt", REQUIREMENTS / "dev.txt", ROOT / "pyproject.toml"
    start_hooks = sorted((ROOT / "overlay" / "delivery").glob("amd_sglang_overlay.*"))
    return [
        Step("venv", f"creating {VENV.name}", "5 s", (sys.version, str(ROOT)), create),
        Step(
            "torch",
            f"installing {TORCH}",
            "30 s and 0.2 GB for a CPU build; minutes and 3 GB for a CUDA build",
            (TORCH,),
            lambda: install("torch", TORCH),
        ),
        # --no-deps: the lock is complete, and sglang's own pins ask for GPU packages that a CPU cannot import.
        Step(
            "sim",
            f"installing sglang {BASE_RELEASE} and what it needs",
            "30 s, 0.3 GB",
            (pins,),
            lambda: install("sim", "--no-deps", "-r", pins),
        ),
        Step(
            "dev",
            "installing the development tools",
            "10 s, 30 MB",
            (tools,),
            lambda: install("dev", "--no-deps", "-r", tools),
        ),
        # sglang imports in about 7 s with its bytecode at hand and in about 19 s without.
        Step(
            "bytecode",
            "byte-compiling the environment",
            "1 min",
            (),
            lambda: compile_all(LOGS / "bytecode.log", site_packages()),
        ),
        Step(
            "overlay",
            "installing the overlay",
            "5 s",
            (project, *start_hooks),
            lambda: install("overlay", "--no-deps", "--no-build-isolation", "-e", ROOT),
        ),
    ]


def transformers_for(version: str) -> str | None:
    """The folder below `.releases` with the transformers that a release needs; None for the one in the environment."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return "transformers-5.6.0" if numbers >= (0, 5, 10) else None


def _fetch(name: str, title: str, hint: str, *requirement: str | Path) -> Path:
    """Install ``requirement`` into `.releases/name`, which appears only once it is complete."""
    target = RELEASES / name

    def run() -> None:
        partial = RELEASES / f".partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        command = [*_PIP, "--no-deps", "--only-binary=:all:", "--target", partial, *requirement]
        run_command(command, LOGS / f"release-{name}.log", cwd=ROOT)
        compile_all(LOGS / f"bytecode-{name}.log", partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    step = Step(
        "complete", title, hint, (_PYTHON_TAG, name, *(word for word in requirement if isinstance(word, Path))), run
    )
    with _one_at_a_time():
        stamps = target / ".provision"
        if pending([step], stamps):
            check_disk(RELEASE_BYTES, ROOT)
            run_pending([step], stamps)
    return target


def release_path(version: str) -> Path:
    """The folder that holds ``sglang/`` and its dist-info at this version, fetched first when it is not here yet.

    Raises ProvisionError when there is no environment to fetch it with or when it cannot be fetched.
    """
    if not re.fullmatch(r"\d+(\.\d+)+(\.?(post|rc|dev)\d+)?", version):
        raise ProvisionError(
            f"{version!r} is no sglang version; write it as the package index does, for example 0.5.12.post1"
        )
    if not VENV_PYTHON.exists():
        raise ProvisionError(f"{VENV_PYTHON} does not exist; run `make venv` first")
    if version == BASE_RELEASE:
        return site_packages()
    return _fetch(version, f"fetching sglang {version}", "20 s, up to 40 MB", f"sglang=={version}")


def release_pythonpath(version: str) -> list[Path]:
    """What to put in front of PYTHONPATH to run this release; nothing for the one installed in the environment."""
    if version == BASE_RELEASE:
        return []
    folders = [release_path(version)]
    companion = transformers_for(version)
    if companion:
        requirement = REQUIREMENTS / f"{companion}.txt"
        folders.insert(0, _fetch(companion, f"fetching {companion}", "10 s, 15 MB", "-r", requirement))
    return folders


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two runs at once (say, pytest's workers) must not install into one folder."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "provision.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def provision(releases: Sequence[str] = ()) -> None:
    """Bring `.venv` and the named releases up to date. Raises ProvisionError."""
    check_python(sys.version_info[:2], sys.executable)
    steps = venv_steps()
    with _one_at_a_time():
        todo = pending(steps, _STAMPS)
        if any(step.name in ("venv", "torch", "sim") for step, _ in todo):
            check_disk(VENV_BYTES, ROOT)
        run_pending(steps, _STAMPS)
    for version in releases:
        release_pythonpath(version)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m demo.provision", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--release", action="append", default=[], metavar="VERSION", help="also fetch this release of sglang"
    )
    arguments = parser.parse_args(argv)
    started = os.times().elapsed
    try:
        provision(arguments.release)
    except ProvisionError as error:
        print(f"provision: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nprovision: interrupted; the next run resumes at the step that was under way", file=sys.stderr)
        return 130
    print(f"environment ready ({elapsed_text(os.times().elapsed - started)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
