"""Typed switches. Every one is an environment variable; the command line sets the same variable.

A value a switch cannot take is an error that names it, never a default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from packaging.version import InvalidVersion, Version

from overlay.errors import MalformedSwitchError, OverlayError
from overlay.records import dataclass

PREFIX = "AMD_SGLANG_"

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Gate(Generic[T]):
    """One switch: `name` is the variable, `default` holds when it is unset or empty. `parse` turns its text into a
    value, or raises ValueError with what was expected."""

    name: str
    help: str
    default: T
    parse: Callable[[str], T]

    def read(self, environ: Mapping[str, str]) -> T:
        text = environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise MalformedSwitchError(self.name, text, str(error)) from None


def boolean(text: str) -> bool:
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError("1, 0, true or false")
    return words[text.lower()]


PATCH_ID = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


def id_list(text: str) -> tuple[str, ...]:
    return _listed(text, PATCH_ID, "patch ids")


#: What the packaging standard recommends for the name of an entry point.
PACK_NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")


def pack_names(text: str) -> tuple[str, ...]:
    """Each name once, in the order of the text."""
    return tuple(dict.fromkeys(_listed(text, PACK_NAME, "names of packs")))


def _listed(text: str, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if any(not pattern.fullmatch(one) for one in names):
        raise ValueError(f"{what} separated by commas")
    return names


def count(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def released(text: str) -> str:
    """A version that names one published source: no pre-release, no development build, no local label."""
    wanted = "the version of a published release, such as 0.5.9 or 0.5.10.post1"
    try:
        version = Version(text)
    except InvalidVersion:
        raise ValueError(wanted) from None
    if version.is_prerelease or version.local or not any(version.release):
        raise ValueError(wanted)
    return str(version)


@dataclass(frozen=True)
class OneOf:
    """A word out of a fixed set."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.words:
            raise ValueError("one of " + ", ".join(self.words))
        return text


OVERLAY = Gate(f"{PREFIX}OVERLAY", "set by the launcher: this process tree asked for the overlay", False, boolean)
STRICT = Gate(f"{PREFIX}STRICT", "never serve with a patch that was planned and could not be applied", False, boolean)
ENABLE = Gate[tuple[str, ...]](f"{PREFIX}ENABLE", "patch ids to switch on, separated by commas", (), id_list)
DISABLE = Gate[tuple[str, ...]](f"{PREFIX}DISABLE", "patch ids to switch off, separated by commas", (), id_list)
TRUST_VERSION = Gate(
    f"{PREFIX}TRUST_VERSION", "judge version ranges as if sglang were this release; fingerprints decide as ever", "",
    released,
)  # fmt: skip
ALLOW_DRIFT = Gate[tuple[str, ...]](
    f"{PREFIX}ALLOW_DRIFT", "patch ids to apply although their source was never read, separated by commas", (), id_list
)
PACKS = Gate[tuple[str, ...]](f"{PREFIX}PACKS", "third-party packs to load, separated by commas", (), pack_names)
SHADOW = Gate(
    f"{PREFIX}SHADOW", "how many of the first calls of each kernel upstream computes too, to compare", 0, count
)
API_KEY = Gate(f"{PREFIX}API_KEY", "the key that `patches status --url` sends to a server with --api-key", "", str)
RUN_DIR = Gate(f"{PREFIX}RUN_DIR", "folder of the per-process status files", "", str)
DENYLIST = Gate(f"{PREFIX}DENYLIST", "file of the patches whose kernel `verify` found wrong", "", str)
SIMULATE = Gate(f"{PREFIX}SIMULATE", "simulate this gfx architecture on the CPU", "", str)
SIMULATE_AITER = Gate(f"{PREFIX}SIMULATE_AITER", "aiter version the simulation answers as", "auto", str)

#: The digest of the plan that a launcher has shown.
ANNOUNCED = f"{PREFIX}PLAN"
#: Handed from the launcher to its children. Not switches: nobody sets them by hand.
HANDOVER = (ANNOUNCED, *(f"{PREFIX}{name}" for name in ("PREFIX", "PYTHON", "DENIED", "ADDED", "RAY_HOOK")))

SWITCHES: tuple[Gate[object], ...] = (
    OVERLAY, STRICT, ENABLE, DISABLE, TRUST_VERSION, ALLOW_DRIFT, PACKS, SHADOW, API_KEY, RUN_DIR, DENYLIST, SIMULATE,
    SIMULATE_AITER,
)  # fmt: skip


def asked(environ: Mapping[str, str], options: Iterable[str]) -> dict[str, str]:
    """`environ` with the packs that `--packs` names added to those it names itself. Raises MalformedSwitchError."""
    option = replace(PACKS, name="--packs")
    named = [name for text in options for name in option.read({option.name: text})]
    if not named:
        return dict(environ)
    return {**environ, PACKS.name: ",".join(dict.fromkeys((*PACKS.read(environ), *named)))}


def check(environ: Mapping[str, str], patch_gates: tuple[Gate[object], ...]) -> None:
    """Raise for a switch with a value it cannot take, and for a variable of ours that nothing reads: a typing error
    there would otherwise go unnoticed."""
    for gate in (*SWITCHES, *patch_gates):
        gate.read(environ)
    known = {gate.name for gate in (*SWITCHES, *patch_gates)} | set(HANDOVER)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            import difflib

            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}."
            hint += " (A third-party pack's own switches are known where --packs names it.)"
            raise OverlayError(f"the environment sets {name}, which is not a switch of amd-sglang. {hint}")
