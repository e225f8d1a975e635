"""Where nobody asked for it, the overlay does nothing, loads nothing and opens nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.delivery.installations import PROBE, Installation

OURS = "import sys; print(*sorted(m for m in sys.modules if m.split('.')[0] in {'overlay', 'patches', 'wrapt'}))\n"
AUDIT = """
import os, runpy, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import site
site.addsitedir(sys.argv[1])
print(*[os.path.basename(name) for name in opened if "overlay" in name and not name.endswith((".pth", ".start"))])
"""


def test_without_the_gate_nothing_is_loaded(installation: Installation) -> None:
    assert installation.run("-c", PROBE + OURS, environ=installation.environ()) == "untouched\n\n"


def test_without_the_gate_no_file_but_the_line_itself_is_opened(installed: Installation) -> None:
    arguments = ("-S", "-c", AUDIT, str(installed.site))
    assert installed.run(*arguments, environ=installed.environ()) == "\n"
    gated = installed.run(*arguments, environ=installed.environ(AMD_SGLANG_OVERLAY="1"))
    assert "boot." in gated  # boot.py, or its byte code


def _other(handed: dict[str, str], name: str, value: str) -> dict[str, str]:
    return {**handed, name: value}


@pytest.mark.parametrize("name", ["AMD_SGLANG_PREFIX", "AMD_SGLANG_PYTHON"])
def test_what_was_handed_to_another_interpreter_starts_nothing_here(installation: Installation, name: str) -> None:
    code = "import sys; print(any(type(f).__name__ == '_SglangWatch' for f in sys.meta_path))"
    handed = installation.handover()
    assert installation.run("-c", code, environ=handed) == "True\n"
    assert installation.run("-c", code, environ=_other(handed, name, "other")) == "False\n"


def test_another_environment_below_the_launcher_is_left_alone(
    installation: Installation, installations: dict[str, Installation]
) -> None:
    bare = installations["bare"]
    assert bare.run("-c", PROBE + OURS, environ=installation.handover()) == "untouched\n\n"


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment and its base")
def test_the_base_interpreter_below_the_launcher_is_left_alone(installation: Installation) -> None:
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    done = subprocess.run(
        [base, "-c", "import sys; print(any(type(f).__name__ == '_SglangWatch' for f in sys.meta_path))"],
        env=installation.handover(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_the_start_file_names_a_callable_that_returns_at_once(installed: Installation) -> None:
    (line,) = (installed.site / "amd_sglang_overlay.start").read_text().split()
    code = f"import pkgutil, sys; f = pkgutil.resolve_name({line!r}); before = list(sys.meta_path)\n"
    code += "print(f(), before == sys.meta_path)\n"
    assert installed.run("-c", code, environ=installed.environ()) == "None True\n"


def test_started_by_both_files_it_is_started_once(installed: Installation) -> None:
    code = "import sys; from overlay.boot import start; start(); start()\n"
    code += "print(sum(type(f).__name__ == '_SglangWatch' for f in sys.meta_path))\n"
    assert installed.run("-c", code) == "1\n"
