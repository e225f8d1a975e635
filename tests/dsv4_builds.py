"""The patches for DeepSeek-V4's development builds over the real sources: ``python -m tests.dsv4_builds GIT_DIR``.

GIT_DIR is a git directory with sglang's history up to 2026-05-27, such as a clone of the public fork 1am9trash/sglang.
No build of those days is on the package index, so the default suite has hand-written trees instead, and this is run by
hand. Every commit of the window is decided; the builds that differ are unpacked and checked in the simulated ROCm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from demo.layout import ROOT
from demo.provision import release_pythonpath
from overlay.model import Patch, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree, module_file
from patches import (
    dsv4_alt_stream,
    dsv4_draft_dispatch,
    dsv4_nosplitk_decode,
    dsv4_verify_eager,
    dsv4_wqkv_fusion,
)

PATCHES: tuple[Patch, ...] = (
    dsv4_draft_dispatch.PATCH,
    dsv4_verify_eager.PATCH,
    dsv4_alt_stream.PATCH,
    dsv4_wqkv_fusion.PATCH,
    dsv4_nosplitk_decode.PATCH,
)
CHECKS = ROOT / "tests" / "patches" / "in_release" / "check_dsv4_builds.py"
_SIMULATED_PYTEST = ("-m", "overlay", "--simulate", "gfx950", "-m", "pytest", "-q", "-p", "no:cacheprovider")
#: Without it a build runs none of the code that one of the patches is about.
TRITON = {"SGLANG_HACK_FLASHMLA_BACKEND": "triton"}
FIRST, MERGE = "866793c50", "deaba7474"
_MTP = frozenset({"dsv4-draft-dispatch", "dsv4-verify-eager"})


class Build(NamedTuple):
    """A commit, the day in the name of its build, and the patches it needs."""

    commit: str
    day: str
    needs: frozenset[str]


BUILDS = (
    Build(FIRST, "20260518", _MTP),
    Build("8131641bc", "20260520", _MTP),
    Build("af8f66940", "20260523", _MTP | {"dsv4-wqkv-fusion"}),
    Build("3f5e2c768", "20260526", frozenset(patch.id for patch in PATCHES)),
    Build("e06058ed6", "20260527", frozenset(patch.id for patch in PATCHES)),
    Build(MERGE, "20260527", frozenset()),
)


def git(directory: Path, *arguments: str) -> bytes:
    """What a git command prints. Raises CalledProcessError."""
    return subprocess.run(["git", "--git-dir", str(directory), *arguments], check=True, stdout=subprocess.PIPE).stdout


def unpack(directory: Path, commit: str, root: Path, *paths: str) -> None:
    """Write files of a commit, given below `python/`, to `root`."""
    archive = git(directory, "archive", commit, "--", *(f"python/{path}" for path in paths))
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar.getmembers()):
            member.name = member.name.removeprefix("python/")
            tar.extract(member, root, filter="data")


def planned(root: Path) -> tuple[frozenset[str], list[str]]:
    """The patches that a tree needs, and a line for each that cannot be decided."""
    plan = make_plan(Registry(PATCHES), DirectoryTree(root), Platform("rocm", "gfx950"), TRITON)
    undecided = [d for d in plan.decisions if d.state not in (State.PLANNED, State.CONTAINED)]
    needs = frozenset(d.patch.id for d in plan.decisions if d.state is State.PLANNED)
    return needs, [f"{d.patch.id} is {d.state.value}: {d.reason}" for d in undecided]


def decide_window(directory: Path) -> list[str]:
    """What is wrong with the decisions for the commits that touch a file the patches read, one line each."""
    modules = sorted({i.slot.module for patch in PATCHES for variant in patch.variants for i in variant.images})
    files = [f"python/{module_file(module)[0]}" for module in modules]
    log = git(directory, "log", "--reverse", "--format=%h", f"{FIRST}^..{MERGE}", "--", *files).decode().split()
    wrong, expected = [], frozenset[str]()
    turns = {build.commit: build.needs for build in BUILDS}
    for commit in log:
        expected = next((needs for turn, needs in turns.items() if commit.startswith(turn)), expected)
        listed = git(directory, "ls-tree", "-r", "--name-only", commit, "--", *files).decode().split()
        with tempfile.TemporaryDirectory() as folder:
            unpack(directory, commit, Path(folder), *(path.removeprefix("python/") for path in listed))
            needs, undecided = planned(Path(folder))
        wrong += [f"{commit}: {line}" for line in undecided]
        if needs != expected:
            wrong.append(f"{commit}: needs {sorted(needs)}, expected {sorted(expected)}")
    print(f"decided {len(log)} commits of {FIRST}^..{MERGE}")
    return wrong


def check(directory: Path, build: Build) -> list[str]:
    """What is wrong with one build, whose checks run in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(directory, build.commit, Path(folder), "sglang")
        name = f"0.5.12.dev{build.day}+g{build.commit}"
        (Path(folder) / "sglang" / "_version.py").write_text(f"__version__ = version = {name!r}\n")
        needs, wrong = planned(Path(folder))
        if needs != build.needs:
            wrong.append(f"needs {sorted(needs)}, expected {sorted(build.needs)}")
        path = [*map(str, release_pythonpath("0.5.13")[:-1]), folder, str(ROOT)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_SGLANG_", "SGLANG_"))}
        done = subprocess.run(
            [sys.executable, *_SIMULATED_PYTEST, str(CHECKS)],
            env={**kept, "PYTHONPATH": os.pathsep.join(path), "AMD_SGLANG_SIMULATE_AITER": "v0.1.15", **TRITON},
            capture_output=True,
            text=True,
            timeout=600,
        )
    if done.returncode:
        wrong.append(done.stdout[-4000:] + done.stderr[-2000:])
    last = (done.stdout.strip().splitlines() or ["nothing ran"])[-1]
    print(f"{name}: {', '.join(sorted(needs)) or 'nothing to do'}; {last}")
    return [f"{name}: {line}" for line in wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.dsv4_builds", description=__doc__)
    parser.add_argument("git_dir", type=Path, help="a git directory with sglang's history of May 2026")
    directory: Path = parser.parse_args(arguments).git_dir
    wrong = decide_window(directory)
    for build in BUILDS:
        wrong += check(directory, build)
    print("\n".join(wrong) or "all as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
