"""The installations, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.delivery.installations import Installation, build_wheel, copy_sources, environment, install


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "amd-sglang")


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="session")
def installations(sources: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installation]:
    folder = tmp_path_factory.mktemp("installations")
    editable = build_wheel(sources, folder / "editable-dist", editable=True)
    return {
        "wheel": install(wheel, environment(folder / "wheel"), "wheel", folder / "wheel"),
        "editable": install(editable, environment(folder / "editable"), "editable", folder / "editable"),
        "checkout": Installation("checkout", environment(folder / "checkout").python, sources),
        "bare": environment(folder / "bare"),
    }


@pytest.fixture(params=["wheel", "editable", "checkout"])
def installation(request: pytest.FixtureRequest, installations: dict[str, Installation]) -> Installation:
    return installations[request.param]


@pytest.fixture(params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, installations: dict[str, Installation]) -> Installation:
    return installations[request.param]
