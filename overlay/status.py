"""What one process says of itself: a small JSON file, written atomically, that holds no argument and no secret."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from overlay import gates
from overlay.errors import OverlayError

SCHEMA = 1


def run_root(environ: Mapping[str, str]) -> Path:
    """Where the folders of runs are kept: AMD_SGLANG_RUN_DIR, else one under the temporary folder that carries the
    user id. Not the session's runtime folder: a server and who looks at it need not share a session."""
    given = gates.RUN_DIR.read(environ)
    if given:
        return Path(given).absolute()
    return Path(tempfile.gettempdir()) / f"amd-sglang-{os.getuid()}"


def make_run_dir(root: Path) -> Path:
    """A fresh folder for one launch, private to the user. Raises OverlayError if `root` cannot be trusted or written.

    The temporary folder is shared: a folder of our name that somebody else owns, or a link, is refused.
    """
    fix = "Set AMD_SGLANG_RUN_DIR to a folder that you own and can write."
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = root.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise OverlayError(f"the run directory {root} is a link or belongs to another user. {fix}")
        # mkdtemp: a name of its own and mode 0700, also for two launches in one second.
        return Path(tempfile.mkdtemp(prefix=f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.getpid()}-", dir=root))
    except OSError as error:
        raise OverlayError(f"the run directory {root} cannot be written ({error.strerror}). {fix}") from error


def write(run_dir: Path, name: str, document: Mapping[str, object]) -> None:
    """Put a document in place in one step: a reader sees the old one or the new one, never half of one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=run_dir)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
        os.replace(temporary, run_dir / name)
    except BaseException:  # also an interrupt must not leave litter behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process. Together with the pid it
    names one process for good, although pids are reused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def read_runs(root: Path) -> list[dict[str, object]]:
    """Every process of every run under `root`, oldest run first, each with `run` and `alive` added.

    A file that is not a status of a schema we know is reported as a row with `error`, not dropped.
    """
    rows = []
    for path in sorted(root.rglob("*.json")):  # a launch below a launched process has its run below the other's
        if path.name.endswith(".calls.json"):
            continue
        rows.append({"run": path.parent.name, **_read(path)})
    return rows


def _read(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes())
        _check(document)
    except (OSError, ValueError, RecursionError) as error:
        return {"file": str(path), "error": f"unreadable status file: {error}", "alive": False, "patches": []}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        document["calls"] = json.loads(path.with_name(f"{document['pid']}.calls.json").read_bytes())["calls"]
    now = started(document["pid"])
    return {**document, "file": str(path), "alive": now is not None and now == document["started"]}


#: What a reader of a status may rely on.
_SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "pid": int,
    "started": (int, type(None)),
    "role": str,
    "ranks": dict,
    "ready": bool,
    "overlay": str,
    "sglang": dict,
    "platform": dict,
    "plan": str,
    "patches": list,
}


def _check(document: object) -> None:
    """Raise ValueError unless this is a status document of our schema."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a document of schema {SCHEMA}")
    for key, kind in _SHAPE.items():
        if key not in document or not isinstance(document[key], kind):
            raise ValueError(f"{key!r} is missing or of the wrong type")
    for group, keys in (("sglang", ("version",)), ("platform", ("kind", "arch", "simulated"))):
        missing = [key for key in keys if key not in document[group]]
        if missing:
            raise ValueError(f"{group!r} lacks {missing[0]!r}")
    for patch in document["patches"]:
        if not isinstance(patch, dict) or not {"id", "state", "reason"} <= patch.keys():
            raise ValueError(f"{patch!r} is not the state of a patch")
