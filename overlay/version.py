"""Which sglang is this, as text, and how far its version string can be believed."""

from __future__ import annotations

import ast
from dataclasses import replace
from enum import Enum

from packaging.version import InvalidVersion, Version

from overlay import version_range
from overlay.fingerprint import parse
from overlay.records import dataclass
from overlay.source import SourceTree, UnreadableSourceError


class VersionKind(str, Enum):
    """RELEASE and POST name one published source, and DECLARED is one that the user vouches for (--trust-version).

    The others do not: `0.5.12.dev20260525+g...` was built after 0.5.12 and sorts before it, a local label says that
    somebody changed something, a checkout keeps the `_version.py` of its last build whatever was pulled since, and
    `0.0.0.dev0` is what sglang/version.py answers when it does not know.
    """

    RELEASE = "release"
    POST = "post"
    PRE = "pre"
    DEV = "dev"
    LOCAL = "local"
    CHECKOUT = "checkout"
    DECLARED = "declared"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SglangVersion:
    """The version an sglang gives itself: `text`. `parsed` is what ranges are compared with."""

    text: str
    kind: VersionKind
    parsed: Version | None

    @property
    def trusted(self) -> bool:
        """Whether `parsed` identifies one published source."""
        return self.kind in (VersionKind.RELEASE, VersionKind.POST, VersionKind.DECLARED)

    def __str__(self) -> str:
        if self.kind is VersionKind.DECLARED:
            return f"{self.parsed} by --trust-version (it calls itself {self.text or 'nothing'})"
        return self.text

    def declared(self, release: str) -> SglangVersion:
        """This sglang, of which the user says that it is made from a published release."""
        return SglangVersion(self.text, VersionKind.DECLARED, Version(release))


def classify(text: str) -> SglangVersion:
    """Sort a version string into its kind. Never raises: what cannot be parsed is UNKNOWN."""
    try:
        parsed = Version(text)
    except InvalidVersion:
        return SglangVersion(text, VersionKind.UNKNOWN, None)
    if parsed.release[:3] == (0, 0, 0) or set(parsed.release) == {0}:
        kind = VersionKind.UNKNOWN
    elif parsed.is_devrelease:
        kind = VersionKind.DEV
    elif parsed.is_prerelease:
        kind = VersionKind.PRE
    elif parsed.local is not None:
        kind = VersionKind.LOCAL
    else:
        kind = VersionKind.POST if parsed.is_postrelease else VersionKind.RELEASE
    return SglangVersion(text, kind, parsed)


def within(version: SglangVersion, specifier: str) -> bool:
    """Whether a version lies in a PEP 440 range."""
    return version.parsed is not None and version_range.contains(specifier, version.parsed)


def may_lie_within(version: SglangVersion, specifier: str) -> bool:
    """Whether a range could hold the source behind a string that proves nothing.

    An unknown version could be anything. `0.5.12.dev20260525+g...` sorts before 0.5.12 although it was built after it,
    so a build counts as the release it is named after as well.
    """
    if version.parsed is None or version.kind is VersionKind.UNKNOWN:
        return True
    return within(version, specifier) or version_range.contains(specifier, Version(version.parsed.base_version))


def newer_than(version: SglangVersion, specifier: str) -> bool:
    """Whether a version lies above a range: outside it, and not below any of its upper bounds."""
    ceiling = version_range.ceiling(specifier)
    above = version.parsed is not None and ceiling is not None and version.parsed >= ceiling
    return above and not within(version, specifier)


def read_version(tree: SourceTree) -> SglangVersion:
    """What `sglang.__version__` would be: `_version.py`, else `version.py`, else the installed metadata."""
    version = classify(_version_text(tree))
    if tree.checkout and (version.trusted or not version.text):
        return replace(version, kind=VersionKind.CHECKOUT)
    return version


def _version_text(tree: SourceTree) -> str:
    for relative in ("sglang/_version.py", "sglang/version.py"):
        text = _literal_version(_read(tree, relative))
        if text:
            return text
    try:
        header = tree.metadata()
    except UnreadableSourceError:
        header = None
    return _header_version(header) if header else ""


def _header_version(header: bytes) -> str:
    from email.parser import BytesHeaderParser  # a third of the time that the rest of this package takes to import

    return str(BytesHeaderParser().parsebytes(header).get("Version") or "").strip()


def _read(tree: SourceTree, relative: str) -> bytes | None:
    try:
        return tree.read(relative)
    except UnreadableSourceError:
        return None


def _literal_version(source: bytes | None) -> str | None:
    """The string constant assigned to `__version__` at the top level of a module."""
    module = parse(source) if source is not None else None
    for statement in module.body if module else []:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
            if "__version__" in names and isinstance(statement.value.value, str):
                return statement.value.value
    return None
