"""SGLANG_USE_AITER comes out of the launcher so that all of sglang's own readers agree about it."""

from __future__ import annotations

import ast
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlay import aiter_switch
from overlay.errors import MalformedSwitchError
from overlay.options import Options
from tests.unit.engine_support import RELEASES, Ended, python, registry, synthetic, write_tree

MEANINGS = {
    **dict.fromkeys(("1", "true", "True", "TRUE", "yes", "Yes", "y", "on", " 1 "), "1"),
    **dict.fromkeys(("0", "false", "False", "no", "n", "off", "OFF", ""), "0"),
}
READERS = {"get_bool_env_var": ("utils/common.py", "utils.py"), "EnvBool": ("environ.py",)}


@pytest.mark.parametrize(("written", "meant"), MEANINGS.items())
def test_every_usual_spelling_becomes_1_or_0(written: str, meant: str) -> None:
    given = {"SGLANG_USE_AITER": written, "X": "yes"}
    assert aiter_switch.respelled(given) == {"SGLANG_USE_AITER": meant, "X": "yes"}
    assert given["SGLANG_USE_AITER"] == written
    note = aiter_switch.note(given)
    assert note is None if written == meant else f"{written!r} is passed on as {meant}" in str(note)


def test_an_unset_switch_stays_unset() -> None:
    assert aiter_switch.respelled({"X": "1"}) == {"X": "1"}
    assert aiter_switch.note({"X": "1"}) is None


@pytest.mark.parametrize("written", ["2", "none", "aiter", "1,0"])
def test_a_word_without_meaning_is_an_error(written: str) -> None:
    for function in (aiter_switch.respelled, aiter_switch.note):
        with pytest.raises(MalformedSwitchError, match=f"SGLANG_USE_AITER='{written}' is not valid: expected 1 or 0"):
            function({"SGLANG_USE_AITER": written})


def readers(release: Path) -> dict[str, Callable[[str], bool]]:
    """The functions of one release that read a switch, taken out of its source: each says what a value means to it."""
    found: dict[str, Any] = {"os": os, "EnvField": object, "logger": logging.getLogger("release")}
    found["_warned_bool_env_var_keys"] = set()
    for name, files in READERS.items():
        for file in files:
            path = release / "sglang" / "srt" / file
            body = ast.parse(path.read_bytes()).body if path.is_file() else []
            definition = [node for node in body if getattr(node, "name", "") == name]
            exec(compile(ast.Module(definition, []), str(path), "exec"), found)
    asked: dict[str, Callable[[str], bool]] = {
        "get_bool_env_var": lambda _value: bool(found["get_bool_env_var"](aiter_switch.NAME)),
        "EnvBool": lambda value: bool(found["EnvBool"]().parse(value)),
    }
    if 'int(os.getenv("SGLANG_USE_AITER"' in (release / "sglang/srt/layers/moe/moe_runner/triton.py").read_text():
        asked["int"] = lambda value: bool(int(value))
    return asked


@pytest.mark.parametrize("release", RELEASES)
def test_all_readers_of_a_release_agree_afterwards(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = readers(RELEASES[release])

    def answers(value: str) -> set[object]:
        monkeypatch.setenv(aiter_switch.NAME, value)
        told: set[object] = set()
        for reader in asked.values():
            try:
                told.add(reader(value))
            except ValueError:
                told.add("refused")
        return told

    assert len(answers("yes")) > 1, "as it is written they do not agree"
    assert len(answers("true")) == (2 if "int" in asked else 1)
    for written, meant in MEANINGS.items():
        (passed_on,) = aiter_switch.respelled({aiter_switch.NAME: written}).values()
        assert answers(passed_on) == {meant == "1"}


def test_a_plan_reads_what_the_server_will_get() -> None:
    assert Options().over({"SGLANG_USE_AITER": "yes"}, registry())["SGLANG_USE_AITER"] == "1"


SERVER = "import json, os\nprint(json.dumps(os.environ.get('SGLANG_USE_AITER')))\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(synthetic(tmp_path / "tree"), {"sglang/launch_server.py": SERVER})


def launch(tree: Path, tmp_path: Path, *arguments: str, **environ: str) -> Ended:
    given = {"AMD_SGLANG_RUN_DIR": str(tmp_path / "runs"), **environ}
    return python("-m", "launcher", "launch", *arguments, path=(tree,), environ=given)


@pytest.mark.parametrize(("written", "got", "said"), [("yes", "1", True), ("1", "1", False), ("off", "0", True)])
def test_the_server_gets_it_and_the_user_is_told(
    tree: Path, tmp_path: Path, written: str, got: str, said: bool
) -> None:
    ended = launch(tree, tmp_path, SGLANG_USE_AITER=written)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == got
    assert (f"SGLANG_USE_AITER={written!r} is passed on as {got}" in ended.err) is said
    dry = launch(tree, tmp_path, "--dry-run", SGLANG_USE_AITER=written)
    assert (f"SGLANG_USE_AITER={got}" in dry.out.split()) is said
    assert ("is passed on as" in dry.err) is said


def test_the_server_of_a_user_who_did_not_set_it_does_not_get_it(tree: Path, tmp_path: Path) -> None:
    assert json.loads(launch(tree, tmp_path).out) is None


def test_a_word_without_meaning_starts_nothing(tree: Path, tmp_path: Path) -> None:
    ended = launch(tree, tmp_path, SGLANG_USE_AITER="maybe")
    assert (ended.code, ended.out) == (2, "")
    assert "SGLANG_USE_AITER='maybe' is not valid" in ended.err
