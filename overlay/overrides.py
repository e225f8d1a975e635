"""What a user may decide against the rules, out loud: which release an sglang is, and which patches may drift."""

from __future__ import annotations

from collections.abc import Mapping

from overlay import gates
from overlay.records import dataclass
from overlay.registry import Registry


@dataclass(frozen=True)
class Overrides:
    """`trust_version` replaces the version that sglang gives itself in every version range; it loosens no fingerprint.
    `allow_drift` names the patches that may be put on source nobody has read."""

    trust_version: str | None = None
    allow_drift: tuple[str, ...] = ()

    @classmethod
    def read(cls, registry: Registry, environ: Mapping[str, str]) -> Overrides:
        """Raises MalformedSwitchError or UnknownPatchError."""
        allowed = gates.ALLOW_DRIFT.read(environ)
        for one in allowed:
            registry.get(one, gates.ALLOW_DRIFT.name)
        return cls(gates.TRUST_VERSION.read(environ) or None, tuple(sorted(set(allowed))))

    def to_json(self) -> dict[str, object]:
        return {"trust_version": self.trust_version, "allow_drift": list(self.allow_drift)}
