"""Fixtures of the engine's tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit import install_sandbox
from tests.unit.scenarios import Scenario


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return Scenario.under(tmp_path)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module to be patched, imported under the name that `install_sandbox.slot` gives."""
    built = install_sandbox.build()
    monkeypatch.setitem(sys.modules, install_sandbox.MODULE, built)
    monkeypatch.setattr(install_sandbox.Guarded, "refuses", "")
    return built
