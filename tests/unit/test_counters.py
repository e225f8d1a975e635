"""The file a process counts in: seen by others at once, never the end of the process, never mistaken."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from overlay import counters, status
from overlay.counters import CALLS, FIELDS, SHADOWED
from tests.unit.test_status import DOCUMENT

NAMES = ["one", "two"]


def zeros() -> dict[str, int]:
    return dict.fromkeys(FIELDS, 0)


def test_a_reader_sees_every_row_change(tmp_path: Path) -> None:
    path = counters.path_of(tmp_path, 7)
    counts = counters.in_file(path, 3)
    assert counters.read(path, NAMES) == {"one": zeros(), "two": zeros()}
    counters.row(counts, 1)[SHADOWED] += 2**40
    counters.row(counts, 0)[CALLS] += 1
    assert counters.read(path, NAMES) == {"one": {**zeros(), "calls": 1}, "two": {**zeros(), "shadowed": 2**40}}
    assert counters.read(path, ["one"]) == {"one": {**zeros(), "calls": 1}}


def test_it_is_private_and_no_status_file(tmp_path: Path) -> None:
    path = counters.path_of(tmp_path, 7)
    before = os.umask(0)
    try:
        counters.in_file(path, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["7.counters"]
    assert status.read_runs(tmp_path) == []


def test_its_space_is_allotted_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allotted = []
    fallocate = os.posix_fallocate

    def watched(handle: int, start: int, length: int) -> None:
        allotted.append((start, length))
        fallocate(handle, start, length)

    monkeypatch.setattr(os, "posix_fallocate", watched)
    counts = counters.in_file(tmp_path / "7.counters", 5)
    assert allotted == [(0, len(counts) * counts.itemsize)]


def test_on_a_full_disk_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        counters.in_file(tmp_path / "7.counters", 1)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_replaced_stays_with_who_has_it_mapped(tmp_path: Path) -> None:
    """To cut it short would end that process with SIGBUS."""
    old = counters.in_file(tmp_path / "7.counters", 1)
    new = counters.in_file(tmp_path / "7.counters", 1)
    old[CALLS] += 5
    assert (old[CALLS], new[CALLS]) == (5, 0)
    assert counters.read(tmp_path / "7.counters", ["one"]) == {"one": zeros()}


PATCHES = [{"id": name, "state": "applied", "reason": "r"} for name in (*NAMES, "three")]


def rows(tmp_path: Path, **changed: object) -> list[dict[str, Any]]:
    document = {**DOCUMENT, "patches": PATCHES, "guarded": NAMES, **changed}
    (tmp_path / "1.json").write_text(json.dumps(document))
    (process,) = status.read_runs(tmp_path)
    patches = process["patches"]
    assert isinstance(patches, list)
    return patches


def test_a_status_has_the_counts_of_each_guard(tmp_path: Path) -> None:
    counts = counters.in_file(counters.path_of(tmp_path, os.getpid()), 3)
    counters.row(counts, 1)[CALLS] = 4
    measured = [{**PATCHES[0], "worst_error": 0.5}, *PATCHES[1:]]
    one, two, three = rows(tmp_path, patches=measured)
    assert (one["counters"], one["worst_error"]) == (zeros(), 0.5)
    assert (two["counters"], two["worst_error"]) == ({**zeros(), "calls": 4}, None)
    assert three == PATCHES[2]


@pytest.mark.parametrize("kind", ["missing", "short", "empty", "folder", "link", "pipe"])
def test_a_file_that_cannot_be_read_is_no_counts(tmp_path: Path, kind: str) -> None:
    path = counters.path_of(tmp_path, os.getpid())
    if kind in ("short", "empty"):
        path.write_bytes(b"\1" * (63 if kind == "short" else 0))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        counters.in_file(tmp_path / "elsewhere", 3)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    assert rows(tmp_path) == [{**PATCHES[0], "worst_error": None}, {**PATCHES[1], "worst_error": None}, PATCHES[2]]


@pytest.mark.parametrize("guarded", [None, "one", {"one": 1}, [1], [["one"]], ["unheard of"]])
def test_an_order_that_makes_no_sense_is_no_counts(tmp_path: Path, guarded: object) -> None:
    counters.in_file(counters.path_of(tmp_path, os.getpid()), 3)
    assert rows(tmp_path, guarded=guarded) == PATCHES
