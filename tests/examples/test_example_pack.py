"""The example of a third-party pack: installed by pip, and in force in processes of real releases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from overlay.model import State
from overlay.plan import make_plan
from overlay.registry import load
from overlay.source import DirectoryTree
from tests.releases import environment, run_simulated
from tests.unit.engine_support import RELEASES, ROCM, ROOT, python

EXAMPLE = ROOT / "examples" / "amd-sglang-example-pack"
#: A release, and how much the report is asked to say.
SERVERS = {"0.5.9": "total", "0.5.23": "parts"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the example into, built from a copy."""
    folder = tmp_path_factory.mktemp("example")
    sources = shutil.copytree(EXAMPLE, folder / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), str(sources))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "site"


Outcomes = dict[str, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def outcomes(site: Path) -> Iterator[Outcomes]:
    """The example's own tests, run with it on every release at once, as its README says."""

    def run(release: str, detail: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), environment(release)["PYTHONPATH"]])
        own_tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
        return run_simulated(
            release, "--packs", "example", *own_tests, PYTHONPATH=path, AMD_SGLANG_EXAMPLE_WEIGHTS=detail
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {release: pool.submit(run, release, detail) for release, detail in SERVERS.items()}


def test_it_is_off_unless_it_is_named(site: Path) -> None:
    listed = [python("-m", "launcher", "patches", "list", *named, path=(site,)) for named in ((), ("--packs=example",))]
    assert ["example-weight-report" in ended.out for ended in listed] == [False, True], listed[1].err


def test_a_launch_says_whose_code_runs_and_hands_the_name_on(site: Path) -> None:
    arguments = ("launch", "--simulate", "gfx942", "--packs", "example", "--dry-run")
    ended = python("-m", "launcher", *arguments, path=(site,))
    assert (
        "WARNING: third-party code: pack example (amd-sglang-example-pack 1.0.0) patches sglang: example-weight-report"
        in ended.err
    )
    assert " AMD_SGLANG_PACKS=example " in ended.out


def test_it_knows_every_release(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    environ = {"AMD_SGLANG_PACKS": "example"}
    registry = load(environ)
    plans = {release: make_plan(registry, DirectoryTree(root), ROCM, environ) for release, root in RELEASES.items()}
    assert {release: plan.decisions[-1].state for release, plan in plans.items()} == dict.fromkeys(
        RELEASES, State.PLANNED
    )
    assert {plan.decisions[-1].patch.id for plan in plans.values()} == {"example-weight-report"}


@pytest.mark.engine
@pytest.mark.parametrize("release", SERVERS)
def test_its_own_tests_pass_on_a_real_release(outcomes: Outcomes, release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
