"""What the wheel holds, and what it would make pip install."""

from __future__ import annotations

import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import overlay
from tests.delivery.installations import ROOT, Installation


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()


def test_the_wheel_holds_the_product_whole(names: set[str]) -> None:
    sources = {
        path.relative_to(ROOT).as_posix() for top in ("overlay", "patches") for path in (ROOT / top).rglob("*.py")
    }
    assert sources <= names
    assert {
        "launcher.py",
        "overlay/py.typed",
        "overlay/delivery/sitecustomize.py",
        "overlay/simulate/bin/rocminfo",
        "overlay/web/page.html",
        "amd_sglang_overlay.pth",
        "amd_sglang_overlay.start",
    } <= names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "overlay", "patches", "launcher.py", "amd_sglang_overlay.pth", "amd_sglang_overlay.start",
    }  # fmt: skip
    assert not [
        name for name in names if "test" in name or name.endswith(".pyc") or "sitecustomize" in Path(name).parts
    ]


def test_nothing_of_the_users_stack_is_a_dependency(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, ".dist-info/METADATA"))
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    required = {need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})}
    assert required == {"wrapt", "click", "packaging"}
    assert (metadata["Name"], metadata["Version"]) == ("amd-sglang-overlay", overlay.__version__)


def test_the_console_script(wheel: Path, installations: dict[str, Installation]) -> None:
    assert "amd-sglang = launcher:main" in read(wheel, "entry_points.txt")
    code = "from launcher import main; main(['--version'])"
    assert overlay.__version__ in installations["wheel"].run("-c", code)


def test_the_files_that_start_it_are_one_line_each(wheel: Path) -> None:
    (line,) = read(wheel, "amd_sglang_overlay.pth").splitlines()
    assert line.startswith("import os; ")
    assert len(read(wheel, "amd_sglang_overlay.start").splitlines()) == 1


def test_an_editable_install_runs_the_sources_and_carries_the_same_line(
    installations: dict[str, Installation], sources: Path
) -> None:
    editable = installations["editable"]
    assert editable.run("-c", "import overlay; print(overlay.__file__)").strip() == str(sources / "overlay/__init__.py")
    for name in ("amd_sglang_overlay.pth", "amd_sglang_overlay.start"):
        assert (editable.site / name).read_bytes() == (installations["wheel"].site / name).read_bytes()
