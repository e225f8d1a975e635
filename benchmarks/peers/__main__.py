"""Fetch the peers into `.peers`: ``python -m benchmarks.peers [NAME]... [--git-dir OWNER/NAME=DIR]... [--wheels DIR]``.

Wheels come from the package index, in the versions and with the digests of `benchmarks.peers.pins`. Those that are in
no wheel come from git directories that `--git-dir` names, such as ``--git-dir ROCm/aiter=../aiter/.git``; without one
they are left out, and said to be. `--wheels` is a folder where wheels are looked for first and kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.fetch import FetchError, fetch
from benchmarks.peers.load import FOLDER
from benchmarks.peers.pins import PEERS, Commit


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all of them by default")
    parser.add_argument("--git-dir", action="append", default=[], metavar="OWNER/NAME=DIR", help="may be repeated")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="where wheels are looked for and kept")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="DIR", help="instead of .peers")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no peer is called {unknown[0]}: choose among {', '.join(names)}")
    git_dirs = _git_dirs(parser, options.git_dir)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = options.wheels or Path(scratch)
        return _fetch_all(options.names or names, git_dirs, wheels, options.into)


def _git_dirs(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, Path]:
    repositories = {peer.source.repository for peer in PEERS if isinstance(peer.source, Commit)}
    found = {}
    for one in given:
        repository, equals, directory = one.partition("=")
        if not equals or repository not in repositories:
            parser.error(f"--git-dir {one}: give {' or '.join(sorted(repositories))}, then =, then a git directory")
        found[repository] = Path(directory)
    return found


def _fetch_all(names: Sequence[str], git_dirs: Mapping[str, Path], wheels: Path, into: Path) -> int:
    failed = False
    for peer in PEERS:
        if peer.name not in names:
            continue
        if isinstance(peer.source, Commit) and peer.source.repository not in git_dirs:
            print(f"{peer.name}: left out, as it is in no wheel: name --git-dir {peer.source.repository}=DIR")
            continue
        try:
            count = fetch(peer, into, wheels=wheels, git_dirs=git_dirs)
        except FetchError as error:
            failed = True
            print(f"{peer.name}: {error}", file=sys.stderr)
        else:
            print(f"{peer.name}: {count} files of {peer.source.label}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
