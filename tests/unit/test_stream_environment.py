"""The stream variables: read as sglang reads them, and what a launch adds for them."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from overlay.errors import MalformedSwitchError
from overlay.stream_environment import (
    ALT_STREAM,
    GDN_STREAM,
    MULTI_STREAM,
    QK_NORM_STREAM,
    QUEUES,
    STREAM_VARIABLES,
    StreamVariable,
    complete,
    streams_on,
)
from tests.unit.engine_support import RELEASES, python, synthetic

WORDS = ("1", "0", "true", "false", "True", "FALSE", "yes", "Y", "no", "n", "on", "off", "2", "bogus", " 1", "")


def function_of(path: Path, *owners: str) -> Callable[..., Any]:
    """A function of a release, compiled from its text alone, with what the two parsers use of its module."""
    body: list[ast.stmt] = ast.parse(path.read_bytes()).body
    for owner in owners:
        (node,) = (one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == owner)
        body = node.body
    quiet = type("Logger", (), {"warning": staticmethod(lambda _text: None)})
    namespace: dict[str, Any] = {"os": __import__("os"), "_warned_bool_env_var_keys": set(), "logger": quiet}
    exec(compile(ast.Module([node], []), str(path), "exec"), namespace)
    return namespace[owners[-1]]  # type: ignore[no-any-return]


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_a_variable_is_on_where_the_release_takes_it_for_on(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = RELEASES[release] / "sglang" / "srt"
    get_bool_env_var = function_of(source / "utils" / "common.py", "get_bool_env_var")
    parse = function_of(source / "environ.py", "EnvBool", "parse")
    for variable, word in itertools.product(STREAM_VARIABLES, WORDS):
        monkeypatch.setenv(variable.name, word)
        try:
            read = parse(None, word) if variable is MULTI_STREAM else get_bool_env_var(variable.name)
        except ValueError:
            read = False  # EnvField.get falls back to the default
        assert variable.is_on({variable.name: word}) is read, (variable.name, word)


@pytest.mark.parametrize("variable", STREAM_VARIABLES, ids=lambda variable: variable.name)
@pytest.mark.parametrize("word", ["2", "bogus", "on", "off", " 1"])
def test_a_word_that_means_nothing_is_an_error_that_says_what_to_write(variable: StreamVariable, word: str) -> None:
    with pytest.raises(
        MalformedSwitchError, match=re.escape(f"{variable.name}={word!r} is not valid: expected 1 or 0")
    ):
        complete({variable.name: word})


@pytest.mark.parametrize("variable", [ALT_STREAM, GDN_STREAM, QK_NORM_STREAM], ids=lambda variable: variable.name)
def test_a_yes_that_sglang_takes_for_off_is_an_error(variable: StreamVariable) -> None:
    with pytest.raises(MalformedSwitchError, match=f"{variable.name}='yes' .* sglang would take it for off"):
        complete({variable.name: "yes"})


def test_a_yes_that_one_reader_takes_for_off_is_said() -> None:
    (notice,) = complete({MULTI_STREAM.name: "yes", QUEUES: "5"}).notices
    assert notice == (
        f"{MULTI_STREAM.name}=yes is on, but Mori's dispatcher takes it for off. Write {MULTI_STREAM.name}=1."
    )
    assert complete({MULTI_STREAM.name: "no"}).notices == ()


@pytest.mark.parametrize(
    ("environ", "queues", "notice"),
    [
        ({"SGLANG_ALT_STREAM": "1"}, "5", None),
        ({"SGLANG_ALT_STREAM": "TRUE"}, "5", None),
        ({"SGLANG_ROCM_USE_MULTI_STREAM": "1"}, "5", None),
        ({"SGLANG_ALT_STREAM": "1", QUEUES: ""}, "5", None),
        ({"SGLANG_ALT_STREAM": "1", QUEUES: "5"}, "5", None),
        ({"SGLANG_ALT_STREAM": "1", QUEUES: "8"}, "8", None),
        ({"SGLANG_ALT_STREAM": "1", QUEUES: "4"}, "4", "GPU_MAX_HW_QUEUES=4 is below 5"),
        ({"SGLANG_ROCM_USE_MULTI_STREAM": "1", QUEUES: "many"}, "many", "GPU_MAX_HW_QUEUES='many' is not a number"),
        ({"SGLANG_ROCM_USE_MULTI_STREAM": "1", QUEUES: "-1"}, "-1", "GPU_MAX_HW_QUEUES='-1' is not a number"),
    ],
)
def test_a_stream_gets_its_queue_and_a_count_of_the_users_is_kept(
    environ: Mapping[str, str], queues: str, notice: str | None
) -> None:
    completed = complete(environ)
    assert completed.environ == {**environ, QUEUES: queues}
    assert len(completed.notices) == (notice is not None)
    assert all(str(notice) in one and "Set GPU_MAX_HW_QUEUES=5 or unset it." in one for one in completed.notices)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {QUEUES: "2"},
        {"SGLANG_ALT_STREAM": "0", QUEUES: "2"},
        {"SGLANG_ALT_STREAM": ""},
        {"SGLANG_ROCM_USE_MULTI_STREAM": "n"},
        {"SGLANG_GDN_QKVZ_BA_ALT_STREAM": "1", "SGLANG_QK_NORM_ALT_STREAM": "1"},
    ],
)
def test_without_a_stream_nothing_changes(environ: Mapping[str, str]) -> None:
    completed = complete(environ)
    assert (completed.environ, completed.notices) == (environ, ())
    assert streams_on(environ) == ()


@pytest.mark.parametrize("command", [("launcher", "launch", "--dry-run"), ("overlay", "--dry-run", "script.py")])
def test_a_launch_shows_the_queue_count_that_it_adds(tmp_path: Path, command: tuple[str, ...]) -> None:
    tree = synthetic(tmp_path / "tree")
    on = python("-m", *command, path=(tree,), environ={"SGLANG_ALT_STREAM": "1"})
    assert on.code == 0, on.err
    assert " GPU_MAX_HW_QUEUES=5 " in on.out
    off = python("-m", *command, path=(tree,), environ={"SGLANG_ALT_STREAM": "0"})
    assert (off.code, "GPU_MAX_HW_QUEUES" in off.out) == (0, False)
    kept = python("-m", *command, path=(tree,), environ={"SGLANG_ALT_STREAM": "1", QUEUES: "3"})
    assert (kept.code, "GPU_MAX_HW_QUEUES" in kept.out) == (0, False)
    assert "[amd-sglang] GPU_MAX_HW_QUEUES=3 is below 5" in kept.err


@pytest.mark.parametrize("command", [("launcher", "launch"), ("overlay", "script.py")])
def test_a_launch_refuses_a_word_that_means_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = python("-m", *command, path=(synthetic(tmp_path / "tree"),), environ={"SGLANG_ROCM_USE_MULTI_STREAM": "2"})
    assert (ended.code, ended.out) == (2, "")
    assert "Error: SGLANG_ROCM_USE_MULTI_STREAM='2' is not valid: expected 1 or 0" in ended.err
