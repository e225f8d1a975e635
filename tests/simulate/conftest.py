from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from overlay.simulate import environment

ROOT = Path(__file__).parents[2]
#: What a .pth file does in an installed overlay.
_START = "from overlay import simulate; simulate.install()\n"

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `sitecustomize` starts the simulation in every interpreter that has it on its path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(f"import os\nif os.environ.get('AMD_SGLANG_SIMULATE'):\n    {_START}")
    return folder


@pytest.fixture(scope="session")
def plain_environment() -> dict[str, str]:
    """This process's environment without any switch of ours or of sglang."""
    ours = ("AMD_SGLANG_", "SGLANG_", "TRITON_", "TORCHDYNAMO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def python(site: Path, plain_environment: Mapping[str, str]) -> Python:
    """Run a program in a fresh interpreter, simulated as `arch` if there is one."""

    def run(
        program: str, arch: str | None = "gfx942", aiter: str = "v0.1.13", *, check: bool = True, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        environ = {**plain_environment, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", **extra}
        if arch is not None:
            environ = environment(arch, {**environ, "AMD_SGLANG_SIMULATE_AITER": aiter})
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


Evaluate = Callable[[str], object]


@pytest.fixture(scope="session")
def in_simulation(site: Path, plain_environment: Mapping[str, str]) -> Iterator[Evaluate]:
    """Evaluate expressions over torch in one simulated interpreter, which serves all tests of a session."""
    environ = {**plain_environment, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "AMD_SGLANG_SIMULATE_AITER": "v0.1.13"}
    program = "import sys, torch\nfor line in sys.stdin: print(repr(eval(line)), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment("gfx942", environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None

        def evaluate(expression: str) -> object:
            print(expression, file=questions, flush=True)
            return ast.literal_eval(answers.readline())

        yield evaluate
        questions.close()
