"""The findings as a table for a terminal, as JSON, and as an exit status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import overlay
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, Level, exit_code, worst
from overlay.render import table

SCHEMA = 1
_WORST_FIRST = tuple(reversed(Level))


@dataclass(frozen=True)
class Report:
    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def to_json(self) -> dict[str, object]:
        """The stable form that `doctor --json` prints."""
        sglang = self.facts.sglang
        return {
            "schema": SCHEMA,
            "overlay": overlay.__version__,
            "sglang": {"version": sglang.version.text, "path": sglang.path} if sglang else None,
            "platform": self.facts.platform.to_json(),
            "level": worst(self.findings).value,
            "findings": [finding.to_json() for finding in self._ordered()],
        }

    def __str__(self) -> str:
        version = self.facts.sglang.version.text if self.facts.sglang else "not found"
        head = f"amd-sglang {overlay.__version__} | sglang {version} | {self.facts.platform}"
        rows = []
        for finding in self._ordered():
            rows.append((finding.level.value, finding.check, finding.message))
            if finding.fix:
                rows.append(("", "", f"-> {finding.fix}"))
        counted = Counter(finding.level for finding in self.findings)
        tail = ", ".join(f"{counted[level]} {level.value}" for level in _WORST_FIRST if counted[level])
        return f"{head}\n{table(('LEVEL', 'CHECK', 'FINDING'), rows)}\n{tail}"

    def _ordered(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: _WORST_FIRST.index(finding.level))
