"""From a command to a running program, with a synthetic sglang that says what it was given."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from overlay.options import Options
from overlay.registry import builtin
from tests.unit.engine_support import (
    BETA_PATCH,
    PATCH,
    RELEASES,
    ROOT,
    Ended,
    bare_site,
    clean_environ,
    python,
    registry,
    slim_copy,
    synthetic,
    write_tree,
)

SERVER = """
import json, os, sys
ours = {k: v for k, v in os.environ.items() if k.startswith("AMD_SGLANG_")}
print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "boot": "overlay.boot" in sys.modules, **ours}))
sys.exit(int(os.environ.get("EXIT", 0)))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An sglang with the real layer norm, and a launch_server that says what it was given."""
    root = synthetic(tmp_path / "tree")
    release = next(iter(RELEASES.values()), None)
    if release is None:
        pytest.skip("no real sglang release is here: run `make releases`")
    slim_copy(release, root)
    return write_tree(root, {"sglang/__init__.py": "", "sglang/launch_server.py": SERVER})


def launch(tree: Path, tmp_path: Path, *arguments: str, **environ: str) -> Ended:
    given = {"AMD_SGLANG_RUN_DIR": str(tmp_path / "runs"), **environ}
    return python("-m", "launcher", "launch", *arguments, path=(tree,), environ=given)


def test_sglang_gets_its_arguments_untouched_and_the_handover(tree: Path, tmp_path: Path) -> None:
    arguments = ["--model-path", "a b", "-tp", "2", '--json={"a": 1}', "--", "", "--x"]
    disabled = ",".join(builtin().ids)
    ended = launch(tree, tmp_path, "--strict", *(f"--disable={one}" for one in builtin().ids), *arguments)
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["argv"] == arguments
    assert said["boot"]
    assert (said["AMD_SGLANG_STRICT"], said["AMD_SGLANG_DISABLE"]) == ("1", disabled)
    assert Path(said["AMD_SGLANG_RUN_DIR"]).parent == tmp_path / "runs"
    statuses = list(Path(said["AMD_SGLANG_RUN_DIR"]).glob("*.json"))
    assert [path.name for path in statuses] == [f"{said['pid']}.json"]
    assert json.loads(statuses[0].read_text())["plan"] == said["AMD_SGLANG_PLAN"]
    assert re.search(r"^gemma-rmsnorm +disabled", ended.err, re.MULTILINE)


def test_the_program_is_told_what_the_launch_has_added(tree: Path, tmp_path: Path) -> None:
    """It must be able to tell Ray's workers, which inherit nothing."""
    said = json.loads(launch(tree, tmp_path, SGLANG_ALT_STREAM="1").out)
    assert "GPU_MAX_HW_QUEUES" in said["AMD_SGLANG_ADDED"].split(",")


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_is_the_programs(tree: Path, tmp_path: Path, code: int) -> None:
    assert launch(tree, tmp_path, EXIT=str(code)).code == code


def test_switches_of_the_command_line_add_to_those_of_the_environment() -> None:
    merged = Options(enable=("beta",)).over({"AMD_SGLANG_ENABLE": "alpha", "X": "1"}, registry(PATCH, BETA_PATCH))
    assert merged == {"AMD_SGLANG_ENABLE": "alpha,beta", "X": "1"}


@pytest.mark.parametrize(("shadow", "seen"), [(None, "7"), (0, "0"), (12, "12")])
def test_shadow_runs_of_the_command_line_replace_those_of_the_environment(shadow: int | None, seen: str) -> None:
    assert Options(shadow=shadow).over({"AMD_SGLANG_SHADOW": "7"}, registry(PATCH))["AMD_SGLANG_SHADOW"] == seen


def test_a_dry_run_starts_nothing_and_prints_what_can_be_run(tree: Path, tmp_path: Path) -> None:
    ended = launch(tree, tmp_path, "--dry-run", "--model-path", "a 'b'", "-tp", "2")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "runs").exists()
    environ = clean_environ(PYTHONPATH=os.pathsep.join([str(tree), str(ROOT)]))
    done = subprocess.run(["sh", "-c", ended.out], env=environ, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert (said["argv"], said["boot"]) == (["--model-path", "a 'b'", "-tp", "2"], True)
    assert shlex.split(ended.out)[0] == "env"


@pytest.mark.parametrize(
    ("hip", "edit", "message"),
    [
        ("None", False, "--strict: this is not ROCm but cpu. Install a ROCm build of torch."),
        ("'6.4'", True, "--strict: gemma-rmsnorm is source-mismatch: the source is none that is known"),
    ],
)
def test_strict_refuses_before_anything_starts(tree: Path, tmp_path: Path, hip: str, edit: bool, message: str) -> None:
    write_tree(tree, {"torch/version.py": f"hip = {hip}\ncuda = None\n"})
    if edit:
        write_tree(tree, {"sglang/srt/layers/layernorm.py": "class GemmaRMSNorm: pass\n"})
    ended = launch(tree, tmp_path, "--strict")
    assert (ended.code, ended.out) == (3, "")
    assert message in ended.err
    assert launch(tree, tmp_path).code == 0


def test_a_patch_asked_for_by_name_must_be_there_in_strict_mode(tree: Path, tmp_path: Path) -> None:
    arguments = ("--strict", "--enable", "gemma-rmsnorm", "--disable", "gemma-rmsnorm")
    ended = launch(tree, tmp_path, *arguments)
    assert ended.code in (2, 3)
    assert "gemma-rmsnorm" in ended.err


def test_a_run_folder_that_cannot_be_written_is_said_before_anything_starts(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    ended = launch(tree, tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert f"the run directory {tmp_path / 'runs'} " in ended.err


@pytest.mark.parametrize("command", [("launch",), ("patches", "plan")])
def test_without_sglang_the_message_says_where_it_looked(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = python("-S", "-m", "launcher", *command, path=(bare_site(tmp_path / "site"),), cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert f"sglang is not installed for {sys.executable}" in ended.err


@pytest.mark.parametrize("command", [("patches", "list"), ("patches", "explain", "gemma-rmsnorm"), ("patches", "plan")])
def test_json_and_text_agree(tree: Path, command: tuple[str, ...]) -> None:
    text, document = (python("-m", "launcher", *command, *more, path=(tree,)) for more in ((), ("--json",)))
    assert (text.code, document.code) == (0, 0), text.err + document.err
    parsed = json.loads(document.out)
    assert parsed["schema"] == 1
    assert "gemma-rmsnorm" in text.out
    assert "gemma-rmsnorm" in document.out


def test_status_shows_a_living_process_and_hides_the_dead(tree: Path, tmp_path: Path) -> None:
    sleeper = "import sglang.srt.layers, sys\nprint('up', flush=True)\nsys.stdin.read()\n"
    write_tree(tree, {"sglang/launch_server.py": sleeper, "sglang/srt/layers/__init__.py": ""})
    runs = {"AMD_SGLANG_RUN_DIR": str(tmp_path / "runs")}
    environ = clean_environ(PYTHONPATH=os.pathsep.join([str(tree), str(ROOT)]), **runs)
    server = subprocess.Popen(
        [sys.executable, "-m", "launcher", "launch"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    show = ("-m", "launcher", "patches", "status")
    alive, table = python(*show, "--json", environ=runs), python(*show, environ=runs)
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == -signal.SIGTERM, "the process is the program itself, and the signal was not caught"
    server.communicate()
    (row,) = json.loads(alive.out)["processes"]
    assert (row["pid"], row["alive"], row["ready"]) == (server.pid, True, False)
    assert f"{server.pid}  starting" in table.out
    assert json.loads(python(*show, "--json", environ=runs).out)["processes"] == []
    (row,) = json.loads(python(*show, "--json", "--all", environ=runs).out)["processes"]
    assert (row["pid"], row["alive"]) == (server.pid, False)


def test_a_status_file_that_lacks_what_is_shown_does_not_break_the_table(tmp_path: Path) -> None:
    write_tree(tmp_path, {"run/1.json": json.dumps({"schema": 1, "pid": 1})})
    ended = python("-m", "launcher", "patches", "status", "--all", environ={"AMD_SGLANG_RUN_DIR": str(tmp_path)})
    assert ended.code == 0, ended.err


def test_a_folder_of_the_users_that_would_hide_our_patches_is_named(tree: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "cwd", {"patches/__init__.py": ""})
    console_script = "import sys; sys.path.pop(0); from launcher import main; main()"
    runs = tmp_path / "runs"
    ended = python(
        "-c", console_script, "launch", path=(tree,), cwd=tmp_path / "cwd", environ={"AMD_SGLANG_RUN_DIR": str(runs)}
    )
    assert ended.code == 2
    assert f"imports {tmp_path / 'cwd' / 'patches' / '__init__.py'} as `patches`, not the overlay's own" in ended.err
    assert not runs.exists()
