"""What the README says of the patches and the states is complete."""

from __future__ import annotations

from demo.layout import ROOT
from overlay.model import State
from overlay.registry import builtin

README = (ROOT / "README.md").read_text()


def test_the_readme_names_every_patch() -> None:
    assert [patch.id for patch in builtin() if f"`{patch.id}`" not in README] == []


def test_the_readme_explains_every_state() -> None:
    assert [state.value for state in State if f"`{state.value}`" not in README] == []
