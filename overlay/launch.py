"""From a command to a running program: plan, refuse or prepare the environment, and become that program."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from overlay import aiter_switch, delivery, gates, status, stream_environment
from overlay.errors import StrictError, UnknownPatchError
from overlay.model import BROKEN, State
from overlay.plan import Plan, make_plan
from overlay.platform import detect
from overlay.registry import Registry, builtin
from overlay.say import say
from overlay.source import installed_tree, launch_search_path


@dataclass(frozen=True)
class Options:
    """The switches of a launch, each with its environment variable."""

    strict: bool = False
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    trust_version: str | None = None
    allow_drift: tuple[str, ...] = ()
    simulate: str | None = None

    def over(self, environ: Mapping[str, str], registry: Registry) -> dict[str, str]:
        """`environ` with these options set in it; lists add to what is there. SGLANG_USE_AITER comes out as 1 or 0."""
        merged = aiter_switch.respelled(environ)
        if self.strict:
            merged[gates.STRICT.name] = "1"
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


@dataclass(frozen=True)
class Prepared:
    """A program ready to start: its command and environment, and the plan that was announced for it."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    added: Mapping[str, str]
    plan: Plan


def prepare(arguments: Sequence[str], options: Options, environ: Mapping[str, str]) -> Prepared:
    """Everything short of starting `python ARGUMENTS...`. Raises OverlayError for whatever a user can cure."""
    registry = builtin()
    gates.check(environ, registry.gates)
    note = aiter_switch.note(environ)
    if note is not None:
        say(note)
    streams = stream_environment.complete(options.over(environ, registry))
    for notice in streams.notices:
        say(notice)
    wanted = streams.environ
    plan = make_plan(registry, installed_tree(launch_search_path(list(arguments))), detect(wanted), wanted)
    if gates.STRICT.read(wanted):
        _insist(plan, gates.ENABLE.read(wanted))
    ready = delivery.environment({**wanted, "AMD_SGLANG_PLAN": plan.digest})
    added = {name: value for name, value in ready.items() if environ.get(name) != value}
    return Prepared((*delivery.interpreter(), *arguments), ready, added, plan)


def preview(prepared: Prepared) -> str:
    """What `run` would do, as a shell line."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in sorted(prepared.added.items())]
    return " ".join(["env", *settings, shlex.join(prepared.command)])


def run(prepared: Prepared) -> None:
    """Become the program. The process keeps its pid, so signals reach it and its exit code is its own."""
    run_dir = status.make_run_dir(status.run_root(prepared.environ))
    environ = {**prepared.environ, gates.RUN_DIR.name: str(run_dir)}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(prepared.command[0], list(prepared.command), environ)


def _insist(plan: Plan, enabled: Sequence[str]) -> None:
    """--strict: no patch may be broken, none that was asked for by name may be missing, and this must be ROCm."""
    if plan.platform.kind != "rocm":
        raise StrictError(f"--strict: this is not ROCm but {plan.platform.kind}. Install a ROCm build of torch.")
    for decision in plan.decisions:
        asked = decision.patch.id in enabled and decision.state not in (State.PLANNED, State.CONTAINED)
        if asked or decision.state in BROKEN:
            raise StrictError(f"--strict: {decision.patch.id} is {decision.state.value}: {decision.reason}")
