"""Runs the checks of the patches on unpacked releases: what each patch does to the real classes, one table of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.layout import BASE_RELEASE, CACHE, LOGS, RELEASES, ROOT
from demo.progress import task
from demo.provision import compile_all, transformers_for
from demo.steps import ProvisionError
from matrix.behaviour import Cell, Seen
from matrix.releases import wheel
from tests.patches.checks import IN_RELEASE, Check, Setting, checks_for

_UNPACKED = CACHE / "unpacked"
_TAKE_OUT = IN_RELEASE / "take_out.py"
_SECONDS = 900
_NOTE = 200  # characters of a reason that the table keeps


@dataclass(frozen=True)
class Verdict:
    """What one file of checks showed."""

    behaves: Seen
    note: str = ""


def behaviour(release: str, planned: Collection[str]) -> dict[str, Cell]:
    """Patch id -> what was seen on one release of those that are planned there. Raises ProvisionError."""
    found: dict[str, Cell] = {}
    path = _python_path(release)
    for setting, checks in _by_setting(release, planned):
        ids = [patch_id for check in checks for patch_id in check.patches if patch_id in planned]
        taken = take_out(path, setting, ids)
        for check, checked in _checked(path, setting, checks):
            found |= {one: joined(taken[one], checked) for one in check.patches if one in taken}
    return found


def take_out(path: str, setting: Setting, ids: Sequence[str]) -> dict[str, Cell]:
    """Patch id -> whether it installs and uninstalls, seen in one process that imports what they wait for."""
    done = _run(path, setting, str(_TAKE_OUT), *ids)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TAKEN OUT ")]
    if not lines:
        return dict.fromkeys(ids, Cell(note=_short(f"it could not be tried: {_last_line(done.stderr)}")))
    rows = json.loads(lines[0].removeprefix("TAKEN OUT "))
    return {
        patch_id: Cell(_seen(row, "installs"), uninstalls=_seen(row, "uninstalls"), note=_short(row["reason"]))
        for patch_id, row in rows.items()
    }


def _checked(path: str, setting: Setting, checks: Sequence[Check]) -> Iterator[tuple[Check, Verdict]]:
    """Each check and what it showed: all in one process first, since most of each is one import of sglang. One that
    fails beside others is run once more alone, as the tests run it: checks may take patches out."""
    together = _verdicts(path, setting, checks)
    for check in checks:
        seen = together[check.file]
        if seen.behaves is not Seen.YES and len(checks) > 1:
            seen = _verdicts(path, setting, [check])[check.file]
        yield check, seen


def _verdicts(path: str, setting: Setting, checks: Sequence[Check]) -> dict[str, Verdict]:
    """File of each check -> what it showed, of one process."""
    report = LOGS / f"behaviour-{os.getpid()}.xml"
    report.unlink(missing_ok=True)
    files = [str(IN_RELEASE / check.file) for check in checks]
    options = ("-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    done = _run(path, setting, "-m", "pytest", *options, *files)
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    report.unlink(missing_ok=True)
    last = _last_line(done.stdout + done.stderr)
    return {check.file: verdict([c for c in cases if file_of(c) == check.file], last) for check in checks}


def verdict(cases: Sequence[ElementTree.Element], last_line: str) -> Verdict:
    """What the tests of one check showed. One that could not be set up says nothing about the patch."""
    failed = [(case, node) for case in cases for node in case.findall("failure")]
    broken = [(case, node) for case in cases for node in case.findall("error")]
    for found, seen, what in ((failed, Seen.NO, "failed"), (broken, Seen.NOT_RUN, "could not be set up")):
        if found:
            case, node = found[0]
            note = f"{len(found)} of {len(cases)} checks {what}, such as {case.get('name')}: {node.get('message')}"
            return Verdict(seen, _short(note))
    if all(case.find("skipped") is not None for case in cases):
        return Verdict(Seen.NOT_RUN, _short(f"no check ran: {last_line}"))
    return Verdict(Seen.YES)


def file_of(case: ElementTree.Element) -> str:
    """The file that a test of a JUnit report stands in. A module that cannot be collected is named by `name` alone."""
    name = str(case.get("classname") or case.get("name"))
    return next((f"{part}.py" for part in name.split(".") if part.startswith("check_")), "")


def joined(taken: Cell, checked: Verdict) -> Cell:
    """What was seen of a patch in both processes."""
    behaves = checked.behaves
    if taken.installs is Seen.NO_IMPORT and behaves is not Seen.YES:
        return Cell(Seen.NO_IMPORT, Seen.NO_IMPORT, Seen.NO_IMPORT, taken.note)
    known = taken.installs in (Seen.YES, Seen.NO)
    installs = taken.installs if known or behaves is not Seen.YES else Seen.YES  # a check begins with that proof
    return Cell(installs, behaves, taken.uninstalls, "; ".join(filter(None, (taken.note, checked.note))))


def _seen(row: Mapping[str, object], step: str) -> Seen:
    if row[step] is not None:
        return Seen.YES if row[step] else Seen.NO
    return Seen.NO_IMPORT if row["installs"] is None else Seen.NOT_RUN


def _by_setting(release: str, planned: Collection[str]) -> Iterator[tuple[Setting, list[Check]]]:
    wanted = [check for check in checks_for(release) if set(check.patches) & set(planned)]
    for setting in _once(check.setting for check in wanted):
        yield setting, [check for check in wanted if check.setting == setting]


def _once(settings: Iterator[Setting]) -> list[Setting]:
    found: list[Setting] = []
    for setting in settings:
        if setting not in found:
            found.append(setting)
    return found


def _run(path: str, setting: Setting, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_SGLANG_", "SGLANG_"))}
    whole = [sys.executable, "-m", "overlay", "--simulate", setting.arch, *setting.options, *command]
    try:
        return subprocess.run(
            whole,
            env={**kept, **setting.environ, "PYTHONPATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(whole, 1, "", f"no end after {_SECONDS} s")


def _python_path(release: str) -> str:
    """What to put on PYTHONPATH to import a release; unpacks it beside the provisioned ones where it is not one."""
    folders = [ROOT]
    if release != BASE_RELEASE:
        folders.insert(0, RELEASES / release if (RELEASES / release / "sglang").is_dir() else _unpacked(release))
        if companion := transformers_for(release):
            if not (RELEASES / companion).is_dir():
                raise ProvisionError(f"{RELEASES / companion} does not exist; run `make releases` first")
            folders.insert(0, RELEASES / companion)
    return os.pathsep.join(map(str, folders))


def _unpacked(release: str) -> Path:
    """A wheel unpacked and byte-compiled: not among the provisioned releases, which the tests take for theirs."""
    target = _UNPACKED / release
    if not target.is_dir():
        partial = _UNPACKED / f".partial-{release}"
        shutil.rmtree(partial, ignore_errors=True)
        with task(f"unpacking sglang {release}", hint="20 s"):
            with zipfile.ZipFile(wheel(release)) as archive:
                archive.extractall(partial)
            compile_all(LOGS / f"bytecode-{release}.log", partial)
        partial.rename(target)
    return target


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _NOTE else f"{line[: _NOTE - 1]}…"
