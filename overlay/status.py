"""What one process says of itself: a small JSON file, written atomically, that holds no argument and no secret."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from overlay import counters, gates, lineage, private_file
from overlay.errors import OverlayError
from overlay.status_schema import check

#: A run has a file per process. What is more than this is counted, and not read.
MOST_FILES = 1024

_CALLS = ".calls.json"
_FIX = "Set AMD_SGLANG_RUN_DIR to a folder that you own and can write."


def run_root(environ: Mapping[str, str]) -> Path:
    """Where the folders of runs are kept: AMD_SGLANG_RUN_DIR, else one under TMPDIR or /tmp that carries the user id.
    Not the session's runtime folder: a server and who looks at it need not share a session."""
    given = gates.RUN_DIR.read(environ)
    if given:
        return Path(given).absolute()
    return Path(environ.get("TMPDIR") or "/tmp").absolute() / f"amd-sglang-{os.getuid()}"


def make_run_dir(root: Path) -> Path:
    """A fresh folder for one launch, private to the user. Raises OverlayError if `root` cannot be trusted or written.

    The temporary folder is shared: a folder of our name that somebody else owns, or a link, is refused.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owned(root)
        # A name of its own, also for two launches in one second whose containers number processes alike.
        run_dir = root / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.getpid()}-{os.urandom(4).hex()}"
        run_dir.mkdir(mode=0o700)
        return run_dir
    except OSError as error:
        raise OverlayError(f"the run directory {root} cannot be written ({error.strerror}). {_FIX}") from error


def join_run_dir(run_dir: Path) -> None:
    """The folder of a launch that may have happened on another host, as for an actor of Ray: made here like there.

    Raises OSError, or OverlayError if what it would lie in cannot be trusted.
    """
    if not run_dir.exists():
        run_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owned(run_dir.parent)
        run_dir.mkdir(mode=0o700, exist_ok=True)


def _check_owned(root: Path) -> None:
    """Raise OverlayError unless this is a folder of this user's, and OSError if it is not there."""
    info = root.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise OverlayError(f"the run directory {root} is a link or belongs to another user. {_FIX}")


def write(run_dir: Path, name: str, document: Mapping[str, object]) -> None:
    """Put a document in place in one step: a reader sees the old one or the new one, never half of one.

    On a full disk the old one, which is no longer true, gives its space to the new one. Raises OSError where the
    document cannot be written at all; no file then claims what is past.
    """
    try:
        _put(run_dir, name, document)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):
            os.unlink(run_dir / name)
        _put(run_dir, name, document)


def _put(run_dir: Path, name: str, document: Mapping[str, object]) -> None:
    with private_file.replacing(run_dir / name) as stream:
        stream.write(json.dumps(document).encode())


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process. Together with the pid it
    names one process for good, although pids are reused."""
    fields = lineage.stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def machine() -> dict[str, str | None]:
    """The name of this host, and the boot that `started` counts from (None where there is no telling). A name may be
    changed while processes run; a boot is no other machine's."""
    try:
        boot: str | None = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = None
    return {"host": os.uname().nodename, "boot": boot}


def read_runs(root: Path) -> list[dict[str, object]]:
    """Every process of every run under `root`, oldest run first, each with `run` and `alive` added.

    A file that is not a status of a schema we know is reported as a row with `error`, not dropped. Raises OverlayError
    if `root` is a link or another user's.
    """
    try:
        _check_owned(root)
    except FileNotFoundError:
        return []
    # A launch below a launched process has its run below the other's.
    return _rows(sorted(root.rglob("*.json")))


def read_run(run_dir: Path) -> list[dict[str, object]]:
    """Every process of one run, as `read_runs` has it; none of the runs below it."""
    paths = sorted(path for path in run_dir.glob("*.json") if not path.name.endswith(_CALLS))
    if len(paths) > MOST_FILES:  # those of processes that are there first
        paths.sort(key=lambda path: not Path("/proc", path.stem).exists())
    rows = _rows(paths[:MOST_FILES])
    if len(paths) > MOST_FILES:
        rows.append(_unreadable(run_dir, f"{len(paths) - MOST_FILES} more files are not read"))
    return rows


def _rows(paths: Sequence[Path]) -> list[dict[str, object]]:
    here = machine()
    return [{"run": path.parent.name, **_read(path, here)} for path in paths if not path.name.endswith(_CALLS)]


def _read(path: Path, here: Mapping[str, str | None]) -> dict[str, object]:
    try:
        document = json.loads(private_file.read(path))
        check(document)
    except (OSError, ValueError, RecursionError) as error:
        return _unreadable(path, f"unreadable status file: {error}")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        document["calls"] = json.loads(private_file.read(path.with_name(f"{document['pid']}.calls.json")))["calls"]
    return {**document, "patches": _counted(document, path), "file": str(path), "alive": _lives(document, here)}


def _counted(document: Mapping[str, Any], path: Path) -> list[dict[str, object]]:
    """The patches of a status, those that have a guard with its `worst_error` and, if they can be read, `counters`."""
    guarded = document.get("guarded")
    if not isinstance(guarded, list) or not all(isinstance(one, str) for one in guarded):
        guarded = []
    counts: dict[str, dict[str, int]] = {}
    with contextlib.suppress(OSError, ValueError):
        counts = counters.read(counters.path_of(path.parent, document["pid"]), guarded)
    patches = []
    for patch in document["patches"]:
        found = {"counters": counts[patch["id"]]} if patch["id"] in counts else {}
        worst = {"worst_error": patch.get("worst_error")} if patch["id"] in guarded else {}
        patches.append({**patch, **worst, **found})
    return patches


def _unreadable(path: Path, why: str) -> dict[str, object]:
    return {"file": str(path), "error": why, "alive": False, "patches": []}


def _lives(document: Mapping[str, Any], here: Mapping[str, str | None]) -> bool:
    """Whether the process that wrote this is there now. No clock is asked: it may have been set since."""
    if document.get("boot", here["boot"]) != here["boot"]:
        return False  # the process of that number here is another one
    now = started(document["pid"])
    return now is not None and now == document["started"]
