"""The matrix: the provisioned releases meet what was reviewed, and whatever differs is named with its cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from matrix import __main__ as command
from matrix import behaviour, expected, known, releases
from matrix.drift import Comparison, Drift
from matrix.expected import Expectation, dumps, loads, runs
from matrix.scenarios import SCENARIOS
from matrix.survey import Survey, survey
from overlay import known_sources
from overlay.model import Patch
from overlay.registry import Registry, builtin
from overlay.source import DirectoryTree, SourceTree
from tests.unit.engine_support import (
    ABSENT_IMAGE,
    ALPHA,
    ALPHA_IMAGE,
    ALPHA_TEXT,
    BETA_IMAGE,
    BETA_PATCH,
    PATCH,
    RELEASES,
    digest_of,
    synthetic,
    variant,
)

EDITED = ALPHA_TEXT.replace('"upstream"', '"edited"')


@pytest.mark.parametrize("release", RELEASES)
def test_a_provisioned_release_meets_the_reviewed_decisions(release: str) -> None:
    expectation, registry = expected.read(), builtin()
    seen = survey(registry, DirectoryTree(RELEASES[release]))
    comparison = Comparison(registry, expectation, lambda other: DirectoryTree(RELEASES[other]))
    found = comparison.drifts({release: seen}, expectation.releases)
    assert not found, "\n\n".join(map(str, found))


def test_the_committed_file_is_what_it_says() -> None:
    text = expected.FILE.read_text()
    assert dumps(loads(text)) == text


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ("aaa", [("1 .. 3", "a")]),
        ("aab", [("1 .. 2", "a"), ("3", "b")]),
        ("aba", [("1", "a"), ("2", "b"), ("3", "a")]),
    ],
)
def test_neighbours_with_the_same_answer_are_told_as_one(answers: str, told: list[tuple[str, str]]) -> None:
    assert list(runs(dict(zip("123", answers, strict=True)))) == told


class Sglang:
    """A history of synthetic releases, and what was reviewed of it."""

    def __init__(self, folder: Path, *patches: Patch, **releases: Mapping[str, str]) -> None:
        self.registry = Registry(patches or (PATCH, BETA_PATCH))
        self.folder = folder
        for name, changed in releases.items():
            version = name.removeprefix("v").replace("_", ".")
            synthetic(folder / version, version, **changed)

    def tree(self, release: str) -> SourceTree:
        return DirectoryTree(self.folder / release)

    def surveys(self, *releases: str) -> dict[str, Survey]:
        return {release: survey(self.registry, self.tree(release)) for release in releases}

    def drifts(self, reviewed: list[str], published: list[str], registry: Registry | None = None) -> list[Drift]:
        expectation = loads(dumps(Expectation(self.surveys(*reviewed))))
        self.registry = registry or self.registry
        return Comparison(self.registry, expectation, self.tree).drifts(self.surveys(*published), published)


def kinds(found: list[Drift]) -> list[tuple[str, str]]:
    return [(drift.kind, drift.subject) for drift in found]


def test_nothing_drifts_where_nothing_changed(tmp_path: Path) -> None:
    sglang = Sglang(tmp_path, v0_5_7={}, v0_5_8={"alpha": EDITED}, v0_5_12={})
    assert sglang.drifts(["0.5.7", "0.5.8", "0.5.12"], ["0.5.7", "0.5.8", "0.5.12"]) == []


def test_a_new_release_with_another_source_is_a_list_of_work(tmp_path: Path) -> None:
    sglang = Sglang(tmp_path, v0_5_7={}, v0_5_8={"alpha": EDITED})
    found = sglang.drifts(["0.5.7"], ["0.5.7", "0.5.8"])
    assert kinds(found) == [
        ("new release", "0.5.8"),
        ("changed decision", "0.5.8 alpha"),
        ("changed fingerprint", f"0.5.8 {ALPHA}"),
    ]
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    assert found[1].text == f"planned (only) -> source-mismatch [{names}]"
    assert found[2].text == f"{min(ALPHA_IMAGE.digests)} -> {digest_of(EDITED, 'Alpha.forward')}, which alpha looks at"
    assert found[2].diff == (
        "--- 0.5.7/sglang/srt/alpha.py:2\n+++ 0.5.8/sglang/srt/alpha.py:2\n@@ -1,2 +1,2 @@\n"
        ' def forward(self):\n-    return "upstream"\n+    return "edited"'
    )
    assert str(found[2]).endswith(found[2].diff)


@pytest.mark.parametrize(
    "text", ["class Alpha: pass\n", "class Other: pass\n"], ids=["the method is gone", "the class is gone"]
)
def test_a_vanished_target_is_called_so(tmp_path: Path, text: str) -> None:
    found = Sglang(tmp_path, v0_5_7={}, v0_5_8={"alpha": text}).drifts(["0.5.7"], ["0.5.7", "0.5.8"])
    assert kinds(found)[-1] == ("vanished target", f"0.5.8 {ALPHA}")
    assert "+++ /dev/null" in found[-1].diff


def test_a_new_release_is_compared_with_the_one_before_it(tmp_path: Path) -> None:
    sglang = Sglang(tmp_path, v0_5_7={}, v0_5_9={"alpha": EDITED}, v0_5_8={}, v0_5_10={"alpha": EDITED})
    found = sglang.drifts(["0.5.7", "0.5.9"], ["0.5.8", "0.5.10", "0.5.7", "0.5.9"])
    assert [drift.text.rpartition(" ")[2] for drift in found] == ["0.5.7", "0.5.9"]


def test_what_a_release_out_of_a_patchs_range_does_is_no_drift(tmp_path: Path) -> None:
    sglang = Sglang(tmp_path, v0_5_12={"alpha": EDITED}, v0_5_13={"alpha": "class Other: pass\n"})
    assert kinds(sglang.drifts(["0.5.12"], ["0.5.12", "0.5.13"])) == [("new release", "0.5.13")]


def test_a_release_that_was_withdrawn_is_named(tmp_path: Path) -> None:
    assert kinds(Sglang(tmp_path, v0_5_7={}, v0_5_8={}).drifts(["0.5.7", "0.5.8"], ["0.5.8"])) == [
        ("release gone", "0.5.7")
    ]


def test_a_patch_that_came_went_or_decides_otherwise_is_named(tmp_path: Path) -> None:
    sglang = Sglang(tmp_path, PATCH, v0_5_7={})
    contained = replace(PATCH, variants=(variant(ALPHA_IMAGE, ABSENT_IMAGE, needed=False),))
    assert kinds(sglang.drifts(["0.5.7"], ["0.5.7"], Registry((BETA_PATCH,)))) == [
        ("new patch", "beta"),
        ("patch gone", "alpha"),
    ]
    sglang.registry = Registry((PATCH,))
    found = sglang.drifts(["0.5.7"], ["0.5.7"], Registry((contained,)))
    assert kinds(found) == [("changed decision", "0.5.7 alpha"), ("new slot", f"0.5.7 {ABSENT_IMAGE.slot}")]
    assert found[0].text.startswith("planned (only) -> contained (only)")


def test_a_patch_that_is_off_by_default_is_shown_as_if_it_were_on(tmp_path: Path) -> None:
    off = replace(BETA_PATCH, id="off", default_on=False, variants=(variant(ABSENT_IMAGE),))
    upon = replace(
        BETA_PATCH, id="upon", default_on=False, requires=("alpha", "off"), variants=(variant(ABSENT_IMAGE),)
    )
    exclusive = replace(BETA_PATCH, id="exclusive", default_on=False, conflicts=("beta",))
    seen = Sglang(tmp_path, PATCH, BETA_PATCH, off, upon, exclusive, v0_5_7={}).surveys("0.5.7")["0.5.7"]
    assert list(seen.decisions) == ["alpha", "beta", "off", "upon", "exclusive"]
    assert {outcome for row in seen.decisions.values() for outcome in row.values()} == {"planned (only)"}
    assert seen.slots[str(BETA_IMAGE.slot)] in BETA_IMAGE.digests


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sglang:
    """The command line on synthetic releases: 0.5.7 reviewed, 0.5.7 and 0.5.8 published."""
    sglang = Sglang(tmp_path / "releases", v0_5_7={}, v0_5_8={"alpha": EDITED})
    file = tmp_path / "expected.toml"
    file.write_text(dumps(Expectation(sglang.surveys("0.5.7"))))
    monkeypatch.setattr(expected, "FILE", file)
    sources = tmp_path / "known_sources.json"
    sources.write_text(known.dumps(known.table(map(sglang.tree, ["0.5.7"]), known.slots(sglang.registry))))
    monkeypatch.setattr(known_sources, "FILE", sources)
    monkeypatch.setattr(expected.read, "__defaults__", (file,))
    seen = tmp_path / "behaviour.toml"
    seen.touch()
    monkeypatch.setattr(behaviour.read, "__defaults__", (seen,))
    monkeypatch.setattr("matrix.catalogue.DOCS", tmp_path / "docs")
    monkeypatch.setattr("matrix.catalogue.builtin", lambda: sglang.registry)
    monkeypatch.setattr(command, "builtin", lambda: sglang.registry)
    monkeypatch.setattr(releases, "tree", sglang.tree)
    monkeypatch.setattr(releases, "published", lambda: ("0.5.7", "0.5.8"))
    return sglang


def test_the_command_fails_until_what_drifted_was_reviewed(
    history: Sglang, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([]) == 1
    said = capsys.readouterr().out
    assert "new release: 0.5.8" in said
    assert '+    return "edited"' in said
    assert "unknown source: Alpha.forward in the file " in said
    assert "4 drifts: settle each, then `make matrix-update`" in said
    assert command.main(["update"]) == 0
    assert '"0.5.8" = "source-mismatch"' in (tmp_path / "expected.toml").read_text()
    assert "0.5.8" in (tmp_path / "docs" / "patches.md").read_text()
    assert command.main(["check"]) == 0
    decisions = 2 * 2 * len(SCENARIOS)
    assert f"2 patches on 2 releases, {decisions} decisions: as reviewed" in capsys.readouterr().out


def test_the_documents_are_written_without_the_index(history: Sglang, tmp_path: Path) -> None:
    del history
    assert command.main(["catalogue"]) == 0
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["matrix.svg", "patches.md"]


def test_documents_of_patches_nobody_reviewed_are_refused(history: Sglang, capsys: pytest.CaptureFixture[str]) -> None:
    strange = replace(PATCH.variants[0], targets=())
    history.registry = Registry((PATCH, BETA_PATCH, replace(BETA_PATCH, id="gamma", variants=(strange,))))
    assert command.main(["catalogue"]) == 2
    assert "holds no decision about gamma: run `make matrix-update`" in capsys.readouterr().err
