"""`python -m overlay` becomes the program: same pid, same exit code, and signals reach it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.delivery.installations import Installation

PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"terminated\\n"), os._exit(9)))
print(os.getpid(), "overlay.boot" in sys.modules, sys.argv[1:], flush=True)
if "--wait" in sys.argv:
    signal.pause()
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A script, and beside it as much of an sglang as a plan needs."""
    (tmp_path / "sglang" / "srt").mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").write_text("")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def start(installation: Installation, program: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(program), str(installation.checkout)])
    environ = installation.environ(PYTHONPATH=path, AMD_SGLANG_RUN_DIR=str(program / "runs"))
    return subprocess.Popen(
        [installation.python, "-m", "overlay", *arguments], env=environ, cwd=program,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("own", [(), ("--",), ("--disable", "gemma-rmsnorm")])
def test_the_program_takes_the_place_of_the_launcher(
    installation: Installation, program: Path, own: tuple[str, ...]
) -> None:
    process = start(installation, program, *own, "program.py", "--strict", "-x")
    out, err = process.communicate(timeout=30)
    assert out == f"{process.pid} True ['--strict', '-x']\n", err
    assert process.returncode == 7


def test_a_module_is_run_as_one(installation: Installation, program: Path) -> None:
    process = start(installation, program, "-m", "program", "a")
    out, err = process.communicate(timeout=30)
    assert out == f"{process.pid} True ['a']\n", err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_program(installation: Installation, program: Path, number: signal.Signals) -> None:
    process = start(installation, program, "program.py", "--wait")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{process.pid} True")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    expected = ("terminated\n", 9) if number is signal.SIGTERM else ("", -signal.SIGKILL)
    assert (out, process.returncode) == expected


def test_without_a_program_nothing_starts(installation: Installation, program: Path) -> None:
    process = start(installation, program)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert "name a program" in err
