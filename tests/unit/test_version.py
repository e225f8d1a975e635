"""Version strings lie: what each kind of string is taken for, and how far it decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from overlay import version_range
from overlay.source import DirectoryTree
from overlay.version import VersionKind, classify, may_lie_within, newer_than, read_version, within
from tests.unit.engine_support import RELEASES, write_tree


@pytest.mark.parametrize(
    ("text", "kind", "trusted"),
    [
        ("0.5.9", VersionKind.RELEASE, True),
        ("0.5.10.post1", VersionKind.POST, True),
        ("0.5.10rc1", VersionKind.PRE, False),
        ("0.5.10.dev3", VersionKind.DEV, False),
        ("0.5.12.dev20260525+g1a2b3c4", VersionKind.DEV, False),
        ("0.5.9+rocm700", VersionKind.LOCAL, False),
        ("0.5.9.post1+rocm700", VersionKind.LOCAL, False),
        ("0.0.0.dev0", VersionKind.UNKNOWN, False),
        ("0.0.0.dev1+g0123abc", VersionKind.UNKNOWN, False),
        ("0", VersionKind.UNKNOWN, False),
        ("main", VersionKind.UNKNOWN, False),
        ("", VersionKind.UNKNOWN, False),
    ],
)
def test_a_string_is_trusted_only_if_it_names_one_published_source(text: str, kind: VersionKind, trusted: bool) -> None:
    version = classify(text)
    assert (version.text, version.kind, version.trusted) == (text, kind, trusted)


@pytest.mark.parametrize(
    ("text", "specifier", "inside"),
    [
        ("0.5.9", ">=0.5.6.post2,<0.5.10", True),
        ("0.5.6.post1", ">=0.5.6.post2,<0.5.10", False),
        ("0.5.10rc1", "<0.5.10", False),
        ("0.5.10.dev1", "<0.5.10", False),
        ("0.5.10rc1", "<0.5.11", True),
        ("0.5.10rc1", ">=0.5.9,<0.5.11", True),
        ("0.5.8.post1", ">0.5.8", False),
        ("0.5.10+rocm700", "==0.5.10", True),
        ("0.5.10.post1", "==0.5.10", False),
        ("0.5.12.dev20260525+g1a2b3c4", "<0.5.12", False),
        ("0.5.12.dev20260525+g1a2b3c4", ">=0.5.12", False),
        ("nonsense", ">=0", False),
        ("", "<99", False),
    ],
)
def test_ranges_follow_pep_440_and_always_count_prereleases(text: str, specifier: str, inside: bool) -> None:
    assert within(classify(text), specifier) is inside


_numbers = st.integers(0, 3)
_releases = st.builds("{}.{}".format, _numbers, _numbers) | st.builds("0.{}.{}".format, _numbers, _numbers)
_tags = st.sampled_from(["", ".post", ".dev", "rc", "rc1.post", ".post1.dev", "rc1.post1.dev"])
_tagged = st.builds(lambda release, tag, n: f"{release}{tag}{n}" if tag else release, _releases, _tags, _numbers)
_locals = st.sampled_from(["", "", "+rocm700"])


@given(
    st.builds("{}{}{}".format, st.sampled_from(["", "", "1!"]), _tagged, _locals),
    st.builds("{}{}".format, _releases, st.sampled_from(["", ".post1", ".post2"])),
    _releases,
)
def test_the_range_of_a_patch_means_what_packaging_takes_it_for(text: str, since: str, before: str) -> None:
    specifier, version = f">={since},<{before}", Version(text)
    assert version_range.contains(specifier, version) is SpecifierSet(specifier).contains(version, prereleases=True)
    assert version_range.ceiling(specifier) == Version(before)


@pytest.mark.parametrize(
    ("text", "specifier", "newer"),
    [
        ("0.5.24", ">=0.5.7,<0.5.24", True),
        ("0.6", ">=0.5.7,<0.5.24", True),
        ("0.5.23.post4", ">=0.5.7,<0.5.24", False),
        ("0.5.24.dev1", ">=0.5.7,<0.5.24", False),
        ("0.5.6", ">=0.5.7,<0.5.24", False),
        ("0.5.6", ">=0.5.7", False),
        ("nonsense", "<0.5.24", False),
    ],
)
def test_newer_means_above_every_upper_bound(text: str, specifier: str, newer: bool) -> None:
    assert newer_than(classify(text), specifier) is newer


@pytest.mark.parametrize("specifier", ["<=0.5.9", "==0.5.9", "==0.5.*,<0.5.10"])
def test_a_version_inside_a_range_is_not_newer_than_it(specifier: str) -> None:
    assert not newer_than(classify("0.5.9"), specifier)


@pytest.mark.parametrize(
    ("text", "specifier", "possible"),
    [
        ("0.5.12.dev20260525+g1a2b3c4", ">=0.5.12,<0.5.24", True),
        ("0.5.12.dev20260525+g1a2b3c4", ">=0.5.6.post2,<0.5.13", True),
        ("0.5.12.dev20260525+g1a2b3c4", ">=0.5.13,<0.5.24", False),
        ("0.5.24.dev5+g1a2b3c4", ">=0.5.13,<0.5.24", False),
        ("0.5.10rc1", ">=0.5.10,<0.5.24", True),
        ("0.5.9+rocm700", ">=0.5.9,<0.5.24", True),
        ("0.5.6.post2+rocm700", ">=0.5.6.post2,<0.5.24", True),
        ("0.5.9+rocm700", ">=0.5.13,<0.5.24", False),
        ("0.0.0.dev0", ">=0.5.13,<0.5.24", True),
        ("0.0.0.dev1+g0123abc", ">=0.5.13,<0.5.24", True),
        ("main", ">=0.5.13,<0.5.24", True),
        ("", ">=0.5.13,<0.5.24", True),
    ],
)
def test_a_build_may_be_what_it_is_named_after_and_an_unknown_version_anything(
    text: str, specifier: str, possible: bool
) -> None:
    assert may_lie_within(classify(text), specifier) is possible


@pytest.mark.parametrize(
    ("version", "git", "package", "kind"),
    [
        ("0.5.9", ".git/HEAD", "sglang", VersionKind.CHECKOUT),
        ("0.5.9.post1", ".git/HEAD", "python/sglang", VersionKind.CHECKOUT),
        ("0.5.9", ".git", "python/sglang", VersionKind.CHECKOUT),
        ("", ".git/HEAD", "python/sglang", VersionKind.CHECKOUT),
        ("0.5.10.dev3+g1a2b3c4", ".git/HEAD", "python/sglang", VersionKind.DEV),
        ("0.0.0.dev0", ".git/HEAD", "python/sglang", VersionKind.UNKNOWN),
        ("0.5.9", ".git/HEAD", "site-packages/sglang", VersionKind.RELEASE),
        ("0.5.9", "README", "python/sglang", VersionKind.RELEASE),
    ],
)
def test_a_checkout_keeps_the_version_file_of_its_last_build(
    tmp_path: Path, version: str, git: str, package: str, kind: VersionKind
) -> None:
    write_tree(tmp_path, {git: "", f"{package}/_version.py": f"__version__ = {version!r}\n"})
    found = read_version(DirectoryTree((tmp_path / package).parent))
    assert (found.text, found.kind) == (version, kind)


_FALLBACK = "try:\n    from sglang._version import __version__\nexcept ImportError:\n    __version__ = '0.0.0.dev0'\n"
_METADATA = "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.12\n\nVersion: 9.9\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sglang/_version.py": "__version__ = version = '0.5.9'\n"}, "0.5.9"),
        ({"sglang/version.py": '__version__ = "0.5.6.post2"\n'}, "0.5.6.post2"),
        ({"sglang/_version.py": "__version__ = '0.5.9'", "sglang/version.py": "__version__ = '0.0.0.dev0'"}, "0.5.9"),
        ({"sglang/version.py": _FALLBACK, "sglang-0.5.12.dist-info/METADATA": _METADATA}, "0.5.12"),
        ({"sglang/_version.py": "__version__ = (", "sglang/version.py": "__version__ = '0.5.8'"}, "0.5.8"),
        ({"sglang/_version.py": b"\xff\x00", "sglang-1.dist-info/METADATA": _METADATA}, "0.5.12"),
        ({"sglang/_version.py": "__version__ = 0.5\n"}, ""),
        ({"sglang/_version.py": "__version__ = compute()\n"}, ""),
        ({"sglang/version.py": _FALLBACK}, ""),
        ({"sglang-0.5.12.dist-info/METADATA": b"\xff\xfe"}, ""),
        ({}, ""),
    ],
)
def test_the_version_is_read_as_text(tmp_path: Path, files: dict[str, str | bytes], expected: str) -> None:
    write_tree(tmp_path, {"sglang/__init__.py": "", **files})
    version = read_version(DirectoryTree(tmp_path))
    assert (version.text, version.parsed is not None) == (expected, bool(expected))


def test_a_version_file_that_exists_and_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "sglang" / "_version.py").mkdir(parents=True)
    write_tree(tmp_path, {"sglang/version.py": "__version__ = '0.5.9'\n"})
    assert read_version(DirectoryTree(tmp_path)).text == "0.5.9"


@pytest.mark.parametrize("source", ["(" * 500, "-" * 100_000 + "1"], ids=["parentheses", "minus signs"])
def test_a_version_file_nobody_can_parse_gives_no_version(tmp_path: Path, source: str) -> None:
    write_tree(tmp_path, {"sglang/_version.py": source})
    assert read_version(DirectoryTree(tmp_path)).kind is VersionKind.UNKNOWN


@pytest.mark.parametrize("release", RELEASES)
def test_real_releases_say_who_they_are(release: str) -> None:
    version = read_version(DirectoryTree(RELEASES[release]))
    assert (version.text, version.trusted) == (release, True)
