"""Ranges of versions as PEP 440 writes them. Pre-releases count as the ordering places them, always: packaging changed
its default for them, so it is never left to the default.

`>=0.5.9,<0.5.24`, which is what patches have, is compared here. `packaging.specifiers` is imported for any other range
alone: with what it needs (logging, sysconfig, the tags of wheels) it takes a launch longer than deciding every patch.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from packaging.version import Version

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

#: A release or post-release to begin with, and a release to end before.
_SINCE_BEFORE = re.compile(r">=([0-9]+(?:\.[0-9]+)*(?:\.post[0-9]+)?),<([0-9]+(?:\.[0-9]+)*)")


def check(text: str) -> None:
    """Raise ValueError for what is no range."""
    if _since_before(text) is None:
        _specifiers(text)


def contains(text: str, version: Version) -> bool:
    """Whether a version lies in a range."""
    bounds = _since_before(text)
    if bounds is None:
        return _specifiers(text).contains(version, prereleases=True)
    since, before = bounds
    # 0.5.24rc1 sorts before 0.5.24, and `<0.5.24` does not mean it (PEP 440, exclusive ordered comparison).
    return since <= version < before and not (version.is_prerelease and Version(version.base_version) == before)


def ceiling(text: str) -> Version | None:
    """The highest upper bound of a range, None if it has none."""
    bounds = _since_before(text)
    if bounds is not None:
        return bounds[1]
    uppers = [s.version.removesuffix(".*") for s in _specifiers(text) if s.operator in ("<", "<=", "==")]
    return max(map(Version, uppers), default=None)


@cache
def _since_before(text: str) -> tuple[Version, Version] | None:
    found = _SINCE_BEFORE.fullmatch(text)
    return (Version(found[1]), Version(found[2])) if found else None


@cache
def _specifiers(text: str) -> SpecifierSet:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(text)
