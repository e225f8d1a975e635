"""Packs in real processes: what is launched with one, what is not, and what a child says of one that has gone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlay.registry import builtin
from tests.unit.engine_support import ROOT, Ended, clean_environ, python, synthetic, write_tree
from tests.unit.pack_support import write_pack

#: Says what `Alpha.forward` returns, and lists the modules of packs that were imported.
SERVER = """
import sys
from sglang.srt.alpha import Alpha
print(Alpha().forward(), *sorted(name for name in sys.modules if name.endswith("_pack")))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for packs, beside a synthetic sglang with a server."""
    write_tree(synthetic(tmp_path / "tree"), {"sglang/launch_server.py": SERVER})
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def run(site: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Ended:
    given = {"AMD_SGLANG_RUN_DIR": str(site.parent / "runs"), **(environ or {})}
    return python("-m", "launcher", *arguments, path=(site, site.parent / "tree"), environ=given)


def statuses(site: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((site.parent / "runs").rglob("*.json"))]


def test_a_named_pack_is_in_force_in_the_server_and_in_its_status(site: Path) -> None:
    write_pack(site)
    ended = run(site, "launch", "--packs", "strange")
    assert (ended.code, ended.out) == (0, "the pack's strange_pack\n"), ended.err
    assert "third-party code: pack strange (strange-pack 1.2) patches sglang: stranger" in ended.err
    assert "the launcher announced" not in ended.err
    (status,) = statuses(site)
    assert status["packs"] == [
        {"name": "strange", "distribution": "strange-pack", "version": "1.2", "patches": ["stranger"]}
    ]
    patches = status["patches"]
    assert isinstance(patches, list)
    assert [(one["id"], one["state"]) for one in patches][-1] == ("stranger", "applied")
    shown = run(site, "patches", "status", "--all").out
    assert "THIRD-PARTY pack strange (strange-pack 1.2): stranger" in shown
    assert re.search(r"stranger +applied +asked for$", shown, re.MULTILINE)


def test_a_pack_that_is_not_named_is_imported_by_nobody(site: Path) -> None:
    trace = site.parent / "imported"
    write_pack(site, f"open({str(trace)!r}, 'a').write('imported')\nPATCHES = (one(),)")
    ended = run(site, "launch")
    assert (ended.code, ended.out) == (0, "upstream\n"), ended.err
    for command in (("patches", "list"), ("doctor", "--json")):
        assert run(site, *command).err == ""
    assert not trace.exists()
    assert statuses(site)[0]["packs"] == []
    run(site, "patches", "list", environ={"AMD_SGLANG_PACKS": "strange"})
    assert trace.read_text() == "imported"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(0)", "importing it raised SystemExit: 0 at "),
        ("PATCHES = (one(id='greedy-sampler'),)", "two patches have the id greedy-sampler"),
    ],
)
def test_nothing_starts_with_a_faulty_pack(site: Path, code: str, message: str) -> None:
    write_pack(site, code)
    ended = run(site, "launch", "--packs", "strange")
    assert (ended.code, ended.out, statuses(site)) == (2, "", [])
    assert ended.err.startswith("Error: the third-party pack 'strange' of strange-pack 1.2 (strange_pack:PATCHES)")
    assert message in ended.err
    assert "Traceback" not in ended.err


def announced(site: Path, *options: str) -> str:
    """The command that a launch would run, as a shell line."""
    disabled = [f"--disable={one}" for one in builtin().ids]  # the synthetic sglang has no source that they know
    ended = run(site, "launch", "--dry-run", "--packs", "strange", *disabled, *options)
    assert ended.code == 0, ended.err
    return ended.out


def shell(site: Path, line: str) -> subprocess.CompletedProcess[str]:
    environ = clean_environ(PYTHONPATH=f"{site}:{site.parent / 'tree'}:{ROOT}")
    return subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("strict", [True, False])
def test_a_pack_that_has_gone_since_the_launch_is_said_by_the_process(site: Path, strict: bool) -> None:
    info = write_pack(site)
    line = announced(site, *(["--strict"] if strict else []))
    assert shell(site, line).stdout == "the pack's strange_pack\n"
    shutil.rmtree(info)
    done = shell(site, line)
    assert (done.returncode, done.stdout) == ((3, "") if strict else (0, "upstream\n"))
    assert "sglang runs unpatched: no pack 'strange' is installed" in done.stderr


@pytest.mark.parametrize("strict", [True, False])
def test_a_pack_of_another_version_is_not_the_one_that_was_announced(site: Path, strict: bool) -> None:
    shutil.copytree(write_pack(site), kept := site.parent / "kept")
    line = announced(site, *(["--strict"] if strict else []))
    metadata = kept / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    shutil.copytree(kept, site / "strange_pack-1.2.dist-info", dirs_exist_ok=True)
    done = shell(site, line)
    assert (done.returncode, done.stdout) == ((3, "") if strict else (0, "the pack's strange_pack\n"))
    assert "the launcher announced" in done.stderr


def test_every_command_about_patches_takes_packs(site: Path) -> None:
    write_pack(site)
    listed = json.loads(run(site, "patches", "list", "--packs", "strange", "--json").out)
    assert listed["patches"][-1]["pack"] == {"name": "strange", "distribution": "strange-pack", "version": "1.2"}
    assert listed["patches"][0]["pack"] is None
    explained = run(site, "patches", "explain", "stranger", "--packs", "strange")
    assert re.search(r"at hand +sglang 0\.5\.9 on ROCm: planned: asked for", explained.out), explained.err
    decided = json.loads(run(site, "patches", "plan", "--packs", "strange", "--json").out)
    assert (decided["patches"][-1]["pack"], decided["packs"][0]["version"]) == ("strange", "1.2")
    shown = run(site, "patches", "diff", "stranger", "--packs", "strange")
    assert '+    return lambda self: "the pack\'s"' in shown.out, shown.err
    unknown = run(site, "patches", "diff", "stranger")
    assert (unknown.code, "unknown patch id 'stranger'" in unknown.err) == (2, True)


def test_the_doctor_tells_packs_that_are_installed_from_those_that_run(site: Path) -> None:
    write_pack(site)

    def said(*arguments: str) -> list[tuple[str, str]]:
        found = json.loads(run(site, "doctor", "--json", *arguments).out)["findings"]
        return [(one["level"], one["message"]) for one in found if one["id"] == "packs"]

    assert said() == [("info", "pack strange (strange-pack 1.2) is installed and off")]
    assert said("--packs", "strange") == [
        ("info", "third-party code is in force: pack strange (strange-pack 1.2), with stranger")
    ]
    ((level, message), _installed) = said("--packs", "ghost")
    assert (level, "no pack 'ghost' is installed" in message) == ("error", True)
