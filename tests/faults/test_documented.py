"""docs/faults.md names tests that exist, and every test of this folder stands in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from demo.layout import ROOT

TEXT = (ROOT / "docs" / "faults.md").read_text()
NAMED = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT))


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_names_a_test_that_exists() -> None:
    assert NAMED
    missing = [f"{file}::{name}" for file, name in sorted(NAMED) if name not in names_in(ROOT / file)]
    assert missing == []


def test_every_row_names_one() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("| fault |", "|---"))]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row.rsplit("|", 2)[1]] == []


def test_every_test_of_a_fault_is_named() -> None:
    here = Path(__file__)
    tests = {
        (str(path.relative_to(ROOT)), name)
        for path in here.parent.glob("test_*.py")
        if path != here
        for name in names_in(path)
    }
    assert tests - NAMED == set()
