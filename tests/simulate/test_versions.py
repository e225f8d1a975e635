"""`auto`: which contract answers for which installed sglang, read from its metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlay.simulate import aiter_version
from overlay.simulate.settings import AITER_HEAD, simulated_kernels


def _install(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only metadata: to import this sglang would fail."""
    info = folder / f"sglang-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("release", "aiter", "kernels"),
    [
        ("0.5.9", "v0.1.10.post3", "0.3.21"),
        ("0.5.10.post1", "v0.1.12", "0.4.2.post2"),
        ("0.5.12.post1", "v0.1.13", "0.4.2.post2"),
        ("0.5.13", "v0.1.15", "0.4.2.post2"),
        ("0.5.19", AITER_HEAD, "0.4.2.post2"),
        ("0.5.23", AITER_HEAD, "0.4.10"),
    ],
)
def test_auto_follows_the_installed_release(
    release: str, aiter: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(release, tmp_path, monkeypatch)
    assert aiter_version({}) == aiter_version({"AMD_SGLANG_SIMULATE_AITER": "auto"}) == aiter
    assert simulated_kernels() == kernels


def test_a_named_version_wins_over_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install("0.5.9", tmp_path, monkeypatch)
    assert aiter_version({"AMD_SGLANG_SIMULATE_AITER": "v0.1.15"}) == "v0.1.15"
    assert aiter_version({"AMD_SGLANG_SIMULATE_AITER": "none"}) is None
