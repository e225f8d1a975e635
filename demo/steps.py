"""Resumable steps: a step is redone exactly when its inputs changed or when it did not finish last time."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.progress import task

#: What pip prints when the index cannot be reached, lower-cased.
_NO_NETWORK = (
    "name resolution",
    "newconnectionerror",
    "connection refused",
    "network is unreachable",
    "read timed out",
    "connecttimeout",
    "proxyerror",
)


class ProvisionError(Exception):
    """The environment cannot be made; the message names the value, the place and the fix."""


@dataclass(frozen=True)
class Step:
    """One unit of work. ``inputs`` are the texts and files that decide its result; ``run`` must be safe to repeat."""

    name: str
    title: str
    hint: str
    inputs: tuple[str | Path, ...]
    run: Callable[[], None]


def digest(inputs: Iterable[str | Path]) -> str:
    """Hex digest of texts and file contents, in order. A missing file counts as such, not as an empty one."""
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            content = item.read_bytes() if item.exists() else b"missing"
            total.update(item.name.encode() + b"\0" + hashlib.sha256(content).digest())
        else:
            total.update(b"text\0" + hashlib.sha256(item.encode()).digest())
    return total.hexdigest()


def pending(steps: Sequence[Step], stamps: Path) -> list[tuple[Step, str]]:
    """The steps still to do, with the key each will be stamped with.

    A key chains the keys before it: once a step has to be redone, so do all that follow.
    """
    todo: list[tuple[Step, str]] = []
    key = ""
    for step in steps:
        key = digest([key, step.name, *step.inputs])
        stamp = stamps / step.name
        if todo or not stamp.exists() or stamp.read_text() != key:
            todo.append((step, key))
    return todo


def run_pending(steps: Sequence[Step], stamps: Path) -> int:
    """Do what is pending, in order, stamping each step as it finishes; return how many were done."""
    todo = pending(steps, stamps)
    for number, (step, key) in enumerate(todo, start=1):
        stamp = stamps / step.name
        stamp.unlink(missing_ok=True)
        with task(f"[{number}/{len(todo)}] {step.title}", hint=step.hint):
            step.run()
        stamps.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)
    return len(todo)


def run_command(command: Sequence[str | Path], log: Path, *, cwd: Path, check: bool = True) -> None:
    """Run a command with its output in ``log``; raise ProvisionError with the cause and the log's tail if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        code = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=cwd
        ).returncode
    if code and check:
        raise ProvisionError(explain_failure(command, code, log))


def explain_failure(command: Sequence[str | Path], code: int, log: Path) -> str:
    """What failed, the likely cause and its fix, and the last lines of the log."""
    text = log.read_text(errors="replace")
    lowered = text.lower()
    if "no space left on device" in lowered:
        cause = f"The disk is full. Free some space (see `df -h {log.parent}`), then run the same command again."
    elif any(sign in lowered for sign in _NO_NETWORK):
        cause = (
            "The package index was not reached. Check the network and pip's settings (`pip config list`), then retry."
        )
    elif "no matching distribution found" in lowered:
        cause = (
            "The package index in pip's settings (`pip config list`) lacks this version for this Python and platform."
        )
    else:
        cause = "Run the same command again once the cause below is fixed; finished steps are kept."
    tail = "\n".join(f"    {line}" for line in text.splitlines()[-15:])
    return f"exit status {code} from: {' '.join(map(str, command))}\n{cause}\nEnd of {log}:\n{tail}"
