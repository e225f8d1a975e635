"""What the README shows of the patches is what the program prints."""

from __future__ import annotations

from demo.layout import ROOT
from overlay.registry import builtin
from overlay.render import patch_table


def test_the_readme_lists_the_patches_as_the_program_does() -> None:
    shown = (ROOT / "README.md").read_text()
    assert f"$ amd-sglang patches list\n{patch_table(builtin())}\n```" in shown


def test_the_readme_explains_every_state() -> None:
    from overlay.model import State

    shown = (ROOT / "README.md").read_text()
    assert [state.value for state in State if f"`{state.value}`" not in shown] == []
