"""Unpacks the pinned files of a peer."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath

from benchmarks.peers.pins import PLATFORMS, PYTHON, Commit, Peer, Wheel


class FetchError(Exception):
    """A peer cannot be had: the message says what was tried."""


def fetch(peer: Peer, into: Path, *, wheels: Path, git_dirs: Mapping[str, Path]) -> int:
    """Replace what `into` holds of a peer; how many files were unpacked. Packages without an `__init__.py` get one.

    `wheels` holds the wheels that were fetched before; `git_dirs` the git directories by repository. Raises FetchError.
    """
    if isinstance(peer.source, Wheel):
        files = dict(_of_wheel(peer.source, wheels))
    else:
        files = dict(_of_commit(peer.source, git_dirs[peer.source.repository]))
    if not files:
        raise FetchError(f"{peer.source.label} has none of {', '.join(peer.source.keep)}")
    for top in {PurePosixPath(path).parts[0] for path in files}:
        shutil.rmtree(into / top, ignore_errors=True)
    stubs = {path: text.encode() for path, text in peer.stubs.items()}
    for path, content in {**files, **stubs}.items():
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    _complete_packages(into / peer.package)
    return len(files)


def _of_wheel(source: Wheel, wheels: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(_wheel(source, wheels)) as archive:
        for path in archive.namelist():
            if not path.endswith("/") and _is_kept(path, source.keep):
                yield path, archive.read(path)


def _wheel(source: Wheel, wheels: Path) -> Path:
    """The wheel with the pinned digest, downloaded if `wheels` has none."""
    wheels.mkdir(parents=True, exist_ok=True)
    name = source.requirement.replace("-", "_").replace("==", "-")
    if not any(wheels.glob(f"{name}-*.whl")):
        platforms = [f"--platform={one}" for one in PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [f"--python-version={PYTHON}", *platforms, f"--dest={wheels}", source.requirement]
        if subprocess.run(command).returncode:
            raise FetchError(f"pip could not download {source.requirement}")
    for wheel in wheels.glob(f"{name}-*.whl"):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() == source.sha256:
            return wheel
    raise FetchError(f"no wheel of {source.requirement} in {wheels} has the digest {source.sha256}")


def _of_commit(source: Commit, git_dir: Path) -> Iterator[tuple[str, bytes]]:
    command = ["git", "--git-dir", str(git_dir), "archive", "--format=tar", source.revision]
    done = subprocess.run([*command, "--", *_folders(source)], capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FetchError(f"{git_dir} has no files of {source.label}: {said}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and _is_kept(member.name, source.keep):
                yield source.prefix + member.name.removeprefix(source.strip), content.read()


def _folders(source: Commit) -> list[str]:
    return sorted({str(PurePosixPath(pattern).parent) for pattern in source.keep})


def _is_kept(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _complete_packages(package: Path) -> None:
    """An empty `__init__.py` where a package's own was left out, which would import what was left out with it."""
    for folder in {package, *(path.parent for path in package.rglob("*.py"))}:
        while folder != package.parent:
            (folder / "__init__.py").touch()
            folder = folder.parent
