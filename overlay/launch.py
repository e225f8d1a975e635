"""From a command to a running program: plan, refuse or prepare the environment, and become that program."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from overlay import aiter_switch, delivery, denylist, gates, ray_handover, status, stream_environment
from overlay.errors import StrictError
from overlay.model import BROKEN, State
from overlay.options import Options
from overlay.plan import Plan, make_plan
from overlay.platform import detect
from overlay.records import dataclass
from overlay.say import say
from overlay.source import installed_tree, launch_search_path


@dataclass(frozen=True)
class Prepared:
    """A program ready to start: its command and environment, and the plan that was announced for it."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    added: Mapping[str, str]
    plan: Plan


def prepare(
    arguments: Sequence[str], options: Options, environ: Mapping[str, str], *, heed_denylist: bool = True
) -> Prepared:
    """Everything short of starting `python ARGUMENTS...`. Raises OverlayError for whatever a user can cure."""
    registry, merged = options.applied(environ)
    note = aiter_switch.note(environ)
    if note is not None:
        say(note)
    streams = stream_environment.complete(merged)
    for notice in streams.notices:
        say(notice)
    platform = detect(streams.environ)
    if heed_denylist:
        wanted = denylist.handing_over(streams.environ, platform)
        for one in sorted(denylist.handed_over(wanted).keys() - set(registry.ids)):
            say(f"the denylist {denylist.path_of(wanted)} names {one}, which is no patch here: ignored")
    else:
        wanted = denylist.without(streams.environ)
    search = launch_search_path(list(arguments))
    tree = installed_tree(search)
    plan = make_plan(registry, tree, platform, wanted)
    if stream_environment.streams_on(wanted):
        from overlay import doctor  # few launches ask for a stream

        for finding in doctor.wrong_numbers(wanted, registry, tree, search, platform, plan):
            say(f"{finding.message}. {finding.fix}")
    if gates.STRICT.read(wanted):
        _insist(plan, gates.ENABLE.read(wanted))
    ready = ray_handover.noted(environ, delivery.environment({**wanted, gates.ANNOUNCED: plan.digest}))
    added = {name: value for name, value in ready.items() if environ.get(name) != value}
    return Prepared((*delivery.interpreter(), *arguments), ready, added, plan)


def preview(prepared: Prepared) -> str:
    """What `run` would do, as a shell line."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in sorted(prepared.added.items())]
    return " ".join(["env", *settings, shlex.join(prepared.command)])


def run(prepared: Prepared) -> None:
    """Become the program. The process keeps its pid, so signals reach it and its exit code is its own."""
    run_dir = status.make_run_dir(status.run_root(prepared.environ))
    become(prepared.command, {**prepared.environ, gates.RUN_DIR.name: str(run_dir)})


def become(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """End this program and go on as another, in the same process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), environ)


def _insist(plan: Plan, enabled: Sequence[str]) -> None:
    """--strict: no patch may be broken, none that was asked for by name may be missing, and this must be ROCm."""
    if plan.platform.kind != "rocm":
        raise StrictError(f"--strict: this is not ROCm but {plan.platform.kind}. Install a ROCm build of torch.")
    for decision in plan.decisions:
        asked = decision.patch.id in enabled and decision.state not in (State.PLANNED, State.CONTAINED)
        if asked or decision.state in BROKEN:
            raise StrictError(f"--strict: {decision.patch.id} is {decision.state.value}: {decision.reason}")
