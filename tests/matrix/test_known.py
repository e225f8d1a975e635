"""The table of known sources says what the releases say, and every process finds in it what it looks for."""

from __future__ import annotations

from functools import cache

import pytest

from matrix import known
from overlay import known_sources
from overlay.observer import Observer
from overlay.registry import builtin
from overlay.source import DirectoryTree
from tests.unit.engine_support import RELEASES


@cache
def shipped() -> known.Table:
    return known.read()


@pytest.mark.parametrize("release", RELEASES)
def test_the_table_has_what_the_text_of_a_release_has(release: str) -> None:
    fresh = known.table([DirectoryTree(RELEASES[release])], known.slots(builtin()))
    absent = known.missing(shipped(), fresh)
    assert not absent, f"run `make matrix-update`: {absent[0]}, and {len(absent) - 1} more"


def test_nothing_in_the_table_is_for_nobody() -> None:
    names = {slot.qualname for slot in known.slots(builtin())}
    assert {name for rows in shipped().values() for name in rows} <= names


def test_the_table_reads_back_as_it_was_written() -> None:
    assert known.dumps(shipped()) == known_sources.FILE.read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_no_file_of_a_release_is_parsed(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.fingerprint.parse", lambda _source: pytest.fail("a known file was parsed"))
    observer = Observer(DirectoryTree(RELEASES[release]))
    assert len({observer.observe(slot) for slot in known.slots(builtin())}) > 10
