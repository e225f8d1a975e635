"""The switches of a launch, and what they make of an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from overlay import aiter_switch, gates
from overlay.errors import UnknownPatchError
from overlay.records import dataclass
from overlay.registry import Registry, load


@dataclass(frozen=True)
class Options:
    """Each has its environment variable."""

    strict: bool = False
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    trust_version: str | None = None
    allow_drift: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    shadow: int | None = None
    simulate: str | None = None

    def applied(self, environ: Mapping[str, str]) -> tuple[Registry, dict[str, str]]:
        """The patches of a launch in `environ`, and the environment that it plans by. Raises OverlayError."""
        given = gates.asked(environ, self.packs)
        registry = load(given)
        gates.check(given, registry.gates)
        return registry, self.over(given, registry)

    def over(self, environ: Mapping[str, str], registry: Registry) -> dict[str, str]:
        """`environ` with these options set in it; lists add to what is there. SGLANG_USE_AITER comes out as 1 or 0."""
        merged = aiter_switch.respelled(environ)
        if self.strict:
            merged[gates.STRICT.name] = "1"
        if self.shadow is not None:
            merged[gates.SHADOW.name] = str(self.shadow)
        if self.trust_version is not None:
            option = replace(gates.TRUST_VERSION, name="--trust-version")
            merged[gates.TRUST_VERSION.name] = option.read({option.name: self.trust_version})
        for flag, gate, ids in (
            ("--enable", gates.ENABLE, self.enable),
            ("--disable", gates.DISABLE, self.disable),
            ("--allow-drift", gates.ALLOW_DRIFT, self.allow_drift),
        ):
            for one in ids:
                if one not in registry.ids:
                    raise UnknownPatchError(one, flag, registry.ids)
            both = dict.fromkeys((*gate.read(environ), *ids))
            if both:
                merged[gate.name] = ",".join(both)
        simulate = self.simulate or gates.SIMULATE.read(environ)
        if simulate:
            from overlay import simulate as simulation

            merged = simulation.environment(simulate, merged)
        return merged
