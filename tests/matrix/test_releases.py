"""Releases come from the index of pip's settings: here a folder, asked and downloaded from by the real pip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from demo.steps import ProvisionError
from matrix import releases
from overlay.version import read_version

VERSIONS = ("0.5.10", "0.5.6.post1", "0.5.9", "0.5.6.post2", "0.5.10.post1", "0.6.0rc1")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of tiny wheels, and nothing provisioned."""
    folder = tmp_path / "simple" / "sglang"
    folder.mkdir(parents=True)
    for version in VERSIONS:
        name = f"sglang-{version}-py3-none-any.whl"
        with zipfile.ZipFile(folder / name, "w") as wheel:
            info = f"sglang-{version}.dist-info"
            wheel.writestr("sglang/__init__.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    for name, value in {
        "PIP_INDEX_URL": (tmp_path / "simple").as_uri(),
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(releases, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(releases, "RELEASES", tmp_path / "none")
    monkeypatch.setattr(releases, "site_packages", lambda: tmp_path / "none")
    monkeypatch.setattr(releases, "LOGS", tmp_path / "logs")
    return folder


def test_every_release_from_the_oldest_on_in_order(index: Path) -> None:
    del index
    assert releases.published() == ("0.5.6.post2", "0.5.9", "0.5.10", "0.5.10.post1")


def test_a_wheel_is_downloaded_once(index: Path, tmp_path: Path) -> None:
    assert read_version(releases.tree("0.5.10")).text == "0.5.10"
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["sglang-0.5.10-py3-none-any.whl"]
    (index / "index.html").unlink()
    assert read_version(releases.tree("0.5.10")).text == "0.5.10"
    with pytest.raises(ProvisionError, match=r"sglang==0\.5\.10\.post1"):
        releases.tree("0.5.10.post1")


def test_an_index_without_sglang_is_an_error_that_says_where_to_look(index: Path) -> None:
    (index / "index.html").write_text("")
    with pytest.raises(ProvisionError, match=r"found no release .*pip config list"):
        releases.published()


def test_a_provisioned_release_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.5.7" / "sglang").mkdir(parents=True)
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    assert releases.tree("0.5.7").path == str(tmp_path / "0.5.7" / "sglang")
