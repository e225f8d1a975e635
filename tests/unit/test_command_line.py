"""The command line: whose an argument is, and what a mistake is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlay import arguments, commands, inspection
from overlay.errors import NoSglangError
from overlay.source import SourceTree
from tests.unit.engine_support import Ended, python, synthetic

Invoke = Callable[..., Result]


@dataclass
class Started:
    """What would have been started."""

    command: list[str]
    options: dict[str, object]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    seen: list[Started] = []

    def start(command: Sequence[str], options: Mapping[str, object]) -> None:
        seen.append(Started(list(command), dict(options)))

    monkeypatch.setattr(commands, "start", start)
    return seen


def invoke(*arguments: str, command: Any = commands.main, **environ: str) -> Result:
    return CliRunner().invoke(command, arguments, env=environ)


DEFAULTS: dict[str, object] = {
    "dry_run": False,
    "strict": False,
    "enable": (),
    "disable": (),
    "trust_version": None,
    "allow_drift": (),
    "packs": (),
    "shadow": None,
    "simulate": None,
}


@pytest.mark.parametrize(
    ("arguments", "rest", "options"),
    [
        ((), (), {}),
        (("-tp", "2"), ("-tp", "2"), {}),
        (("--model-path", "m", "--tp=2", "x"), ("--model-path", "m", "--tp=2", "x"), {}),
        (("--strict", "--model", "m"), ("--model", "m"), {"strict": True}),
        (("--dry-run", "-tp", "2"), ("-tp", "2"), {"dry_run": True}),
        (("--enable", "a", "--enable=b", "--tp", "2"), ("--tp", "2"), {"enable": ("a", "b")}),
        (("--disable", "--strict", "--tp", "2"), ("--tp", "2"), {"disable": ("--strict",)}),
        (("--trust-version=0.5.9", "--tp", "2"), ("--tp", "2"), {"trust_version": "0.5.9"}),
        (("--allow-drift", "a", "--allow-drift=b", "--tp"), ("--tp",), {"allow_drift": ("a", "b")}),
        (("--packs", "a,b", "--packs=c", "--tp"), ("--tp",), {"packs": ("a,b", "c")}),
        (("--shadow", "100", "--tp", "2"), ("--tp", "2"), {"shadow": 100}),
        (("--simulate", "gfx942", "--port=1"), ("--port=1",), {"simulate": "gfx942"}),
        (("--strict", "--", "--tp", "2"), ("--tp", "2"), {"strict": True}),
        (("--", "--strict"), ("--strict",), {}),
        (("--model", "m", "--", "x"), ("--model", "m", "--", "x"), {}),
        (("--model", "strict", "enable"), ("--model", "strict", "enable"), {}),
        (("--strict-decoding", "--enabled=1"), ("--strict-decoding", "--enabled=1"), {}),
        (("", "a b", "--x=--y"), ("", "a b", "--x=--y"), {}),
        (("-h",), ("-h",), {}),
    ],
)
def test_our_options_lead_and_everything_else_is_sglangs(
    started: list[Started], arguments: tuple[str, ...], rest: tuple[str, ...], options: dict[str, object]
) -> None:
    result = invoke("launch", *arguments)
    assert result.exit_code == 0, result.output
    (one,) = started
    assert one.command == ["-m", "sglang.launch_server", *rest]
    assert one.options == {**DEFAULTS, **options}


@pytest.mark.parametrize(
    "late",
    [
        "--strict",
        "--enable=a",
        "--disable",
        "--trust-version",
        "--allow-drift=a",
        "--packs=a",
        "--shadow=1",
        "--simulate",
        "--dry-run",
    ],
)
def test_an_option_of_ours_among_sglangs_is_an_error(started: list[Started], late: str) -> None:
    result = invoke("launch", "--model", "m", late)
    assert (result.exit_code, started) == (2, [])
    assert f"{late.partition('=')[0]} comes after sglang's arguments" in result.output


@pytest.mark.parametrize("option", ["--enable", "--disable", "--simulate"])
def test_an_option_without_its_value_is_an_error(started: list[Started], option: str) -> None:
    result = invoke("launch", option)
    assert (result.exit_code, started) == (2, [])
    assert option in result.output


@pytest.mark.parametrize("count", ["-1", "1.5", "all", ""])
def test_a_number_of_shadow_runs_is_a_whole_number(started: list[Started], count: str) -> None:
    for result in (invoke("launch", "--shadow", count), invoke("--shadow", count, "x.py", command=commands.wrapper)):
        assert (result.exit_code, started) == (2, [])
        assert "--shadow" in result.output and count in result.output


@pytest.mark.parametrize("command", [("launch", "--help"), ("patches", "plan", "--help"), ("--help",)])
def test_help_starts_nothing(started: list[Started], command: tuple[str, ...]) -> None:
    result = invoke(*command)
    assert (result.exit_code, started) == (0, [])
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "rest", "strict"),
    [
        (("script.py", "--strict"), ["script.py", "--strict"], False),
        (("--strict", "script.py", "-x"), ["script.py", "-x"], True),
        (("-m", "package.module", "--enable", "x"), ["-m", "package.module", "--enable", "x"], False),
        (("--", "script.py", "--strict"), ["script.py", "--strict"], False),
        (("--strict", "--", "-m", "m"), ["-m", "m"], True),
    ],
)
def test_any_program_can_be_run(
    started: list[Started], arguments: tuple[str, ...], rest: list[str], strict: bool
) -> None:
    result = invoke(*arguments, command=commands.wrapper)
    assert result.exit_code == 0, result.output
    assert (started[0].command, started[0].options["strict"]) == (rest, strict)


@pytest.mark.parametrize("arguments", [(), ("--",), ("--strict",), ("-m",)])
def test_a_program_must_be_named(started: list[Started], arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments, command=commands.wrapper)
    assert (result.exit_code, started) == (2, [])
    assert "name a program" in result.output


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"AMD_SGLANG_STRICT": "yes"}, "AMD_SGLANG_STRICT='yes' is not valid: expected 1, 0, true or false"),
        (
            {"AMD_SGLANG_DISABLE": "ghost"},
            "unknown patch id 'ghost' in AMD_SGLANG_DISABLE: known ids are gemma-rmsnorm",
        ),
        ({"AMD_SGLANG_GEMMA_RMSNORM_BACKEND": "x"}, "AMD_SGLANG_GEMMA_RMSNORM_BACKEND='x' is not valid: expected one"),
        ({"AMD_SGLANG_ALLOW_DRIFT": "ghost"}, "unknown patch id 'ghost' in AMD_SGLANG_ALLOW_DRIFT: known ids are"),
        ({"AMD_SGLANG_TRUST_VERSION": "main"}, "AMD_SGLANG_TRUST_VERSION='main' is not valid: expected the version of"),
        ({"AMD_SGLANG_DISABEL": "x"}, "Did you mean AMD_SGLANG_DISABLE?"),
        ({"AMD_SGLANG_SIMULATE": "gfx1"}, "AMD_SGLANG_SIMULATE='gfx1' is not valid"),
    ],
)
@pytest.mark.parametrize("command", [("patches", "plan"), ("launch", "--dry-run")])
def test_a_mistake_in_the_environment_is_one_line(
    command: tuple[str, ...], environ: dict[str, str], message: str
) -> None:
    result = invoke(*command, **environ)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("launch", "--enable", "ghost"), "unknown patch id 'ghost' in --enable: known ids are gemma-rmsnorm"),
        (("launch", "--disable", "ghost"), "unknown patch id 'ghost' in --disable: known ids are gemma-rmsnorm"),
        (("launch", "--simulate", "gfx1"), "gfx1"),
        (
            ("launch", "--allow-drift", "ghost"),
            "unknown patch id 'ghost' in --allow-drift: known ids are gemma-rmsnorm",
        ),
        (("launch", "--trust-version", "0.5.9rc1"), "--trust-version='0.5.9rc1' is not valid: expected the version of"),
        (("patches", "plan", "--trust-version", "0.0.0"), "--trust-version='0.0.0' is not valid"),
        (("patches", "diff", "ghost"), "unknown patch id 'ghost'"),
        (("patches", "diff", "gemma-rmsnorm", "--sglang", "/missing"), "--sglang /missing: no package sglang there"),
        (("patches", "explain", "ghost"), "unknown patch id 'ghost'"),
        (("patches", "plan", "--sglang", "/missing"), "--sglang /missing: no package sglang there"),
        (("patches", "plan", "--platform", "vulkan"), "vulkan"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_explanation_ends_with_what_the_sglang_at_hand_needs(tmp_path: Path) -> None:
    tree = str(synthetic(tmp_path, "0.5.9"))
    shown = invoke("patches", "explain", "gemma-rmsnorm", "--sglang", tree)
    assert (shown.exit_code, "at hand   sglang 0.5.9 on ROCm: source-mismatch: the source" in shown.output) == (0, True)
    asked = json.loads(invoke("patches", "explain", "gemma-rmsnorm", "--sglang", tree, "--json").output)
    assert (asked["id"], asked["here"]["state"]) == ("gemma-rmsnorm", "source-mismatch")


def test_a_patch_is_explained_without_an_sglang_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_search: object) -> SourceTree:
        raise NoSglangError("none")

    monkeypatch.setattr(inspection, "installed_tree", nothing)
    assert "at hand   no sglang is installed here" in invoke("patches", "explain", "gemma-rmsnorm").output
    assert json.loads(invoke("patches", "explain", "gemma-rmsnorm", "--json").output)["here"] is None


def test_commands_that_are_imported_when_they_are_named() -> None:
    shown = invoke("--help").output
    assert all(f"\n  {name} " in shown for name in ("doctor", "launch", "patches"))
    assert "explain" in invoke("patches", "--help").output


_LAUNCH = """
import gc, os, sys
from launcher import main
collections = [each["collections"] for each in gc.get_stats()]
def become(*_):
    {}
os.execve = become
main(sys.argv[1:])
"""


def at_exec(tree: Path, statement: str) -> Ended:
    """A launch of `tree` that executes a statement where it would become sglang."""
    path, runs = tree / "launch.py", {"AMD_SGLANG_RUN_DIR": str(tree / "runs")}
    path.write_text(_LAUNCH.format(statement))
    return python(str(path), "launch", "--shadow", "3", "--model", "m", path=(tree,), environ=runs)


def test_a_launch_imports_nothing_that_only_other_commands_need(tmp_path: Path) -> None:
    ended = at_exec(synthetic(tmp_path), "print('became', *sys.modules)")
    became, *loaded = ended.out.split()
    assert became == "became" and "patches.gemma_rmsnorm" in loaded, ended.err
    ours = {"commands", "doctor", "inspection", "diff", "wheel", "packs"}
    theirs = {"click", "packaging.specifiers", "zipfile", "importlib.metadata", "logging", "tempfile"}
    assert theirs.union(f"overlay.{name}" for name in ours).isdisjoint(loaded)


def test_a_launch_collects_no_garbage(tmp_path: Path) -> None:
    ended = at_exec(synthetic(tmp_path), "print([each['collections'] for each in gc.get_stats()] == collections)")
    assert ended.out == "True\n", ended.err


def test_an_interrupted_launch_says_so_as_click_does(tmp_path: Path) -> None:
    ended = at_exec(synthetic(tmp_path), "raise KeyboardInterrupt")
    assert (ended.code, ended.err.endswith("\n\nAborted!\n")) == (1, True), ended.err


_flags = st.sampled_from(["--strict", "--dry-run", "--strict=1", "--help"])
_lists = st.sampled_from(
    ["--enable", "--enable=a", "--disable=b", "--allow-drift", "--packs", "--packs=c", "--enable="]
)
_values = st.sampled_from(
    ["--trust-version=0.5.9", "--shadow=3", "--shadow", "--shadow=-1", "--shadow=x", "--simulate"]
)
_others = st.sampled_from(["--", "-m", "a", "7", "", "=", "--model", "--model=m", "--enabled", "-"])


@given(st.lists(_flags | _lists | _values | _others, max_size=6))
@example(["--enable", "--strict", "--shadow", "3", "--", "--dry-run"])
@example(["--simulate", "--", "-m", "--strict"])
@settings(deadline=None, max_examples=500)
def test_what_a_launch_reads_by_itself_is_what_click_reads(given: list[str]) -> None:
    read = arguments.read(given)
    for command in (commands.launch, commands.wrapper):
        try:
            context = command.make_context("launch", list(given))
        except (click.UsageError, click.exceptions.Exit):
            assert read is None or command is commands.wrapper
        else:
            assert read in (None, (context.params, context.obj))
    in_order = [one for one in given if not one.startswith("-")]
    assert arguments.read(["--strict", "--", *in_order]) == ({**DEFAULTS, "strict": True}, in_order)


@pytest.mark.parametrize("program", [("launcher", "launch"), ("overlay",)])
@pytest.mark.parametrize("wrong", [("--enable", "nope"), ("--trust-version=next",)])
def test_an_error_reads_alike_with_and_without_click(program: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    command = commands.main if program[1:] else commands.wrapper
    shown = invoke(*program[1:], *wrong, "x.py", command=command)
    ended = python("-m", *program, *wrong, "x.py")
    assert (ended.code, ended.err) == (shown.exit_code, shown.output)
    assert ended.err.startswith("Error: ")
