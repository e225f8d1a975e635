"""What a check has to say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """How bad it is. ERROR: will not serve, may hang, or gives wrong numbers. WARNING: not what was asked for."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_SEVERITY = tuple(Level)
_EXIT_CODES = {Level.OK: 0, Level.INFO: 0, Level.WARNING: 1, Level.ERROR: 2}


@dataclass(frozen=True)
class Finding:
    """One result: `check` names what was looked at, `fix` is what to type or set, empty where nothing is to be done."""

    check: str
    level: Level
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return {"id": self.check, "level": self.level.value, "message": self.message, "fix": self.fix}


def ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def info(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, Level.INFO, message, fix)


def warning(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Level.WARNING, message, fix)


def error(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Level.ERROR, message, fix)


def worst(findings: Iterable[Finding]) -> Level:
    return max((finding.level for finding in findings), key=_SEVERITY.index, default=Level.OK)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if nothing is above info, 1 for a warning, 2 for an error."""
    return _EXIT_CODES[worst(findings)]
