"""Every interpreter of a process tree starts the overlay before its first statement."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.delivery.installations import PROBE, Installation

STARTED = "started\n"

SPAWNED = """
import multiprocessing

def probe():
    exec({probe!r})

def child(depth):
    probe()
    if depth:
        process = multiprocessing.get_context({method!r}).Process(target=child, args=(depth - 1,))
        process.start()
        process.join()
        assert process.exitcode == 0

if __name__ == "__main__":
    child(2)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_and_grandchildren_of_multiprocessing(installation: Installation, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWNED.format(probe=PROBE, method=method))
    assert installation.run(str(script)) == STARTED * 3


def test_a_program_that_is_executed_and_one_that_it_executes(installation: Installation) -> None:
    again = f"import subprocess; subprocess.run([sys.executable, '-c', {PROBE!r}])\n"
    replaced = f"import os; os.execv(sys.executable, [sys.executable, '-c', {PROBE!r}])\n"
    assert installation.run("-c", PROBE + again + replaced) == STARTED * 3


@pytest.mark.parametrize("flag", ["-I", "-E", "-s", "-P", "-B", "-O"])
def test_an_installed_overlay_is_reached_under_every_flag_but_one(installed: Installation, flag: str) -> None:
    if flag == "-P" and "PYTHONSAFEPATH" not in installed.run("--help-all"):
        pytest.skip("-P needs Python 3.11")
    assert installed.run(flag, "-c", PROBE) == STARTED
    assert installed.handover(flag)["AMD_SGLANG_OVERLAY"] == "1"


@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_a_checkout_that_cannot_be_reached_is_an_error_that_says_why(
    installations: dict[str, Installation], flag: str
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        installations["checkout"].handover(flag)
    error = str(caught.value.stderr)
    assert "overlay.errors.DeliveryError" in error
    assert f"a child of {installations['checkout'].python} " in error
    assert f" {flag}" in error.partition("does not start the overlay")[0]
    assert "pip install amd-sglang-overlay" in error


def test_an_installed_overlay_leaves_the_python_path_alone(installed: Installation) -> None:
    assert "PYTHONPATH" not in installed.handover()


def test_a_checkout_keeps_the_users_python_path_behind_its_own(
    installations: dict[str, Installation], tmp_path: Path
) -> None:
    (tmp_path / "users_module.py").write_text("")
    checkout = installations["checkout"]
    given = checkout.run(
        "-c", "import os; from overlay import delivery; print(delivery.environment(dict(os.environ))['PYTHONPATH'])",
        environ=checkout.environ(PYTHONPATH=str(tmp_path)), cwd=checkout.checkout,
    )  # fmt: skip
    assert given.strip().split(":") == [str(checkout.checkout / "overlay" / "delivery"), str(tmp_path)]


def test_a_customisation_that_prints_does_not_hide_the_answer(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('welcome to this machine')\n")
    code = (
        "import os; from overlay import delivery; print(delivery.environment(dict(os.environ))['AMD_SGLANG_OVERLAY'])"
    )
    out = installation.run(
        "-c", code, environ=installation.environ(PYTHONPATH=str(tmp_path)), cwd=installation.checkout
    )
    assert out.endswith("1\n")


@pytest.fixture
def refusal(installations: dict[str, Installation], sources: Path) -> str:
    """What a checkout says in an environment in which another overlay is installed."""
    mixed = Installation("checkout", installations["wheel"].python, sources)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        mixed.handover()
    return str(caught.value.stderr)


def test_a_checkout_beside_another_installed_overlay_is_refused(refusal: str) -> None:
    assert "overlay.errors.DeliveryError" in refusal


def test_the_refusal_names_the_other_overlay(refusal: str, installations: dict[str, Installation]) -> None:
    assert str(installations["wheel"].site / "overlay") in refusal
