"""`amd-sglang doctor` from the command line: exit status, JSON, and a Python that has next to nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlay.doctor.finding import Level
from overlay.registry import builtin
from tests.unit.engine_support import Ended, bare_site, python, synthetic, write_tree

#: The sglang of these tests has none of the source that the patches know.
ALL_PATCHES = ",".join(builtin().ids)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An sglang and a torch for ROCm that end the process if they are imported."""
    root = synthetic(tmp_path / "tree")
    fatal = "raise SystemExit('imported')\n"
    return write_tree(root, {"torch/__init__.py": fatal, "sglang/__init__.py": fatal, "sgl_kernel/common_ops.so": ""})


def doctor(tree: Path, *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
    return python("-m", "launcher", "doctor", *arguments, path=(tree,), cwd=cwd, environ=environ)


def levels(ended: Ended) -> dict[str, str]:
    return {finding["id"]: finding["level"] for finding in json.loads(ended.out)["findings"]}


def test_the_json_is_stable_and_complete(tree: Path) -> None:
    ended = doctor(tree, "--json")
    document = json.loads(ended.out)
    assert set(document) == {"schema", "overlay", "sglang", "platform", "level", "findings"}
    assert document["schema"] == 1
    assert document["sglang"] == {"version": "0.5.9", "path": str(tree / "sglang")}
    assert document["platform"]["kind"] == "rocm"
    assert {tuple(finding) for finding in document["findings"]} == {("id", "level", "message", "fix")}
    assert {finding["level"] for finding in document["findings"]} <= {level.value for level in Level}
    ranks = [list(Level).index(Level(finding["level"])) for finding in document["findings"]]
    assert ranks == sorted(ranks, reverse=True)
    assert document["level"] == document["findings"][0]["level"]


def test_the_exit_status_is_that_of_the_worst_finding(tree: Path) -> None:
    simulated = {"AMD_SGLANG_SIMULATE": "gfx942", "AMD_SGLANG_DISABLE": ALL_PATCHES}
    fine, warned, failed = (
        doctor(tree, "--json", environ=simulated),
        doctor(tree, "--json", environ={**simulated, "SGLANG_QK_NORM_ALT_STREAM": "1"}),
        doctor(tree, "--json", environ={**simulated, "SGLANG_ROCM_USE_MULTI_STREAM": "bogus"}),
    )
    assert [ended.code for ended in (fine, warned, failed)] == [0, 1, 2], fine.out + warned.out + failed.out
    assert [json.loads(ended.out)["level"] for ended in (fine, warned, failed)] == ["info", "warning", "error"]


def test_text_and_json_tell_the_same(tree: Path) -> None:
    text, document = doctor(tree), doctor(tree, "--json")
    assert text.code == document.code
    for finding in json.loads(document.out)["findings"]:
        assert f"{finding['level']:<8} {finding['id']}" in text.out
        assert not finding["fix"] or finding["fix"].split()[0] in text.out


def test_the_arguments_of_the_launch_are_heard(tree: Path) -> None:
    environ = {"AMD_SGLANG_SIMULATE": "gfx942", "SGLANG_ROCM_USE_MULTI_STREAM": "1"}
    write_tree(tree, {"sglang/srt/models/deepseek_v2.py": "'SGLANG_ROCM_USE_MULTI_STREAM'\n"})
    assert "event-waits" not in levels(doctor(tree, "--json", environ=environ))
    assert levels(doctor(tree, "--json", "--moe-a2a-backend", "mori", environ=environ))["event-waits"] == "warning"
    late = doctor(tree, "--moe-a2a-backend", "mori", "--json", environ=environ)
    assert (late.code, "--json comes after sglang's arguments" in late.err) == (2, True)


def test_an_environment_without_sglang_and_torch_is_diagnosed(tmp_path: Path) -> None:
    site = bare_site(tmp_path / "site")
    ended = python("-S", "-m", "launcher", "doctor", "--json", path=(site,), cwd=tmp_path)
    assert ended.code == 2, ended.err
    assert (ended.err, json.loads(ended.out)["sglang"]) == ("", None)
    found = levels(ended)
    assert {found[check] for check in ("sglang", "torch", "delivery")} == {"error"}
    assert found["folders"] == "ok"


def test_a_folder_that_shadows_sglang_is_an_error(tree: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "cwd", {"sglang/__init__.py": ""})
    ended = doctor(tree, "--json", cwd=tmp_path / "cwd")
    assert (ended.code, levels(ended)["sglang"]) == (2, "error")
    assert "it hides the real package" in ended.out


@pytest.mark.parametrize(
    ("name", "value"),
    [("AMD_SGLANG_STRICT", "maybe"), ("AMD_SGLANG_SIMULATE", "gfx1"), ("SGLANG_USE_AITER", "perhaps")],
)
def test_a_malformed_switch_is_a_finding_and_no_crash(tree: Path, name: str, value: str) -> None:
    ended = doctor(tree, "--json", environ={name: value})
    assert (ended.code, ended.err) == (2, "")
    problems = [one["message"] for one in json.loads(ended.out)["findings"] if one["id"] == "switches"]
    assert [f"{name}='{value}' is not valid" in problem for problem in problems] == [True]
