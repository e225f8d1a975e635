"""A checkout borrows the name `sitecustomize`; the user's own runs all the same, and fails as it would without us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.delivery.installations import PROBE, Installation


@pytest.fixture
def checkout(installations: dict[str, Installation]) -> Installation:
    return installations["checkout"]


def run(checkout: Installation, theirs: Path, *, gated: bool, code: str = "pass") -> subprocess.CompletedProcess[str]:
    environ = checkout.environ(PYTHONPATH=str(theirs))
    if gated:
        handed = checkout.handover()
        environ = {**handed, "PYTHONPATH": os.pathsep.join([handed["PYTHONPATH"], str(theirs)])}
    return subprocess.run(
        [checkout.python, "-c", code], env=environ, cwd=theirs, capture_output=True, text=True, check=False
    )


THEIRS = {
    "works": "import sys\nprint('theirs', __name__, sys.modules['sitecustomize'].__file__ == __file__)\n",
    "raises": "raise ValueError('theirs failed')\n",
    "lacks a module": "import no_such_module\n",
    "leaves": "raise SystemExit(5)\n",
    "does not parse": "def f(:\n",
}


@pytest.mark.parametrize("case", THEIRS)
def test_the_users_own_behaves_as_before(checkout: Installation, tmp_path: Path, case: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(THEIRS[case])
    code = "import sitecustomize; print('after', sitecustomize.__name__)"
    plain, ours = (run(checkout, tmp_path, gated=gated, code=code) for gated in (False, True))
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert plain.stderr.splitlines()[-2:] == ours.stderr.splitlines()[-2:]
    assert "theirs" in plain.stdout + plain.stderr or case != "works"


def test_both_are_started(checkout: Installation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    assert run(checkout, tmp_path, gated=True, code=PROBE).stdout == "theirs\nstarted\n"


def test_a_package_counts_as_the_users_own(checkout: Installation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize").mkdir()
    (tmp_path / "sitecustomize" / "__init__.py").write_text("from sitecustomize.part import x\nprint('theirs', x)\n")
    (tmp_path / "sitecustomize" / "part.py").write_text("x = 1\n")
    assert run(checkout, tmp_path, gated=True, code=PROBE).stdout == "theirs 1\nstarted\n"


def test_without_one_there_is_nothing_to_hand_over_to(checkout: Installation, tmp_path: Path) -> None:
    done = run(checkout, tmp_path, gated=True, code=PROBE)
    assert (done.stdout, done.stderr) == ("started\n", "")


def test_a_checkout_hides_none_of_the_users_modules(checkout: Installation, tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text("print('theirs')\n")
    handed = checkout.handover()
    path = os.pathsep.join([handed["PYTHONPATH"], str(tmp_path)])
    assert checkout.run("-c", "import launcher", environ={**handed, "PYTHONPATH": path}) == "theirs\n"


def test_a_simulation_nobody_knows_does_not_cost_the_user_their_own(checkout: Installation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    handed = checkout.handover()
    path = os.pathsep.join([handed["PYTHONPATH"], str(tmp_path)])
    out = checkout.run("-c", "pass", environ={**handed, "PYTHONPATH": path, "AMD_SGLANG_SIMULATE": "gfx000"})
    assert out == "theirs\n"
