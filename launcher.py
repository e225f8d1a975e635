"""The command line: `amd-sglang`, and `python -m overlay`. Arguments and text only; everything else is in `overlay`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import click

import overlay
from overlay import gates, render, status
from overlay.diff import diff_patch
from overlay.doctor import examine
from overlay.errors import NoSglangError, OverlayError
from overlay.launch import Options, prepare, preview, run
from overlay.model import Decision
from overlay.plan import Plan, decision_to_json, make_plan
from overlay.platform import KINDS, Platform, detect
from overlay.registry import builtin
from overlay.source import SourceTree, installed_tree, launch_search_path, open_tree

_Function = TypeVar("_Function", bound=Callable[..., object])


class _Failure(click.ClickException):
    """An error the user can cure: one line, no traceback."""

    def __init__(self, error: OverlayError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares a default on the class


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OverlayError as error:
            raise _Failure(error) from error


class _Leading(click.Command):
    """A command whose own options come first: the first argument that is not one begins the other program's."""

    own_options_only_first = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, rest = self._split(ctx, args)
        super().parse_args(ctx, own)
        ctx.obj = rest
        return rest

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        flags = {name: bool(getattr(p, "is_flag", False)) for p in self.get_params(ctx) for name in p.opts}
        at = 0
        while at < len(args):
            name, equals, _ = args[at].partition("=")
            if args[at] == "--":
                return args[:at], args[at + 1 :]
            if name not in flags:
                break
            at += 1 if equals or flags[name] else 2
        late = (flags.keys() & {arg.partition("=")[0] for arg in args[at:]}) - {"--help"}
        if late and self.own_options_only_first:
            raise click.UsageError(
                f"{min(late)} comes after sglang's arguments: the options of amd-sglang go first.", ctx
            )
        return args[:at], args[at:]


class _LeadingForSglang(_Leading):
    """sglang has no option of these names, so one that stands among its arguments is a mistake, unless `--` said so."""

    own_options_only_first = True


#: Against the rules, out loud: the plan, the launch and every status say that they were used.
_OVERRIDES = (
    click.option("--trust-version", metavar="VERSION", help="Judge version ranges as if sglang were this release."),
    click.option(
        "--allow-drift", multiple=True, metavar="ID", help="Apply a patch although nobody has read this source."
    ),
)


def _decorated(function: _Function, decorators: Sequence[Callable[[_Function], _Function]]) -> _Function:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def _overriding(function: _Function) -> _Function:
    return _decorated(function, _OVERRIDES)


def _launch_options(function: _Function) -> _Function:
    return _decorated(
        function,
        (
            click.option("--strict", is_flag=True, help="Leave, rather than serve without a patch that was planned."),
            click.option("--enable", multiple=True, metavar="ID", help="Switch a patch on that is off by default."),
            click.option("--disable", multiple=True, metavar="ID", help="Switch a patch off."),
            *_OVERRIDES,
            click.option("--simulate", metavar="ARCH", help="Simulate this ROCm GPU on the CPU (gfx942, gfx950)."),
            click.option("--dry-run", is_flag=True, help="Print the plan and the command, and start nothing."),
        ),
    )


@click.group(cls=_Commands)
@click.version_option(overlay.__version__, prog_name="amd-sglang")
def main() -> None:
    """Run SGLang on AMD ROCm with back-ported optimisations and fixes."""


@main.command(cls=_LeadingForSglang, options_metavar="[OPTIONS] SGLANG_ARGS...", add_help_option=True)
@_launch_options
@click.pass_context
def launch(ctx: click.Context, /, dry_run: bool, **options: object) -> None:
    """Start `sglang.launch_server` under the overlay. SGLANG_ARGS go to it untouched."""
    _start(["-m", "sglang.launch_server", *ctx.obj], dry_run, options)


@click.command(cls=_Leading, options_metavar="[OPTIONS] (-m MODULE | SCRIPT) ARGS...")
@_launch_options
@click.pass_context
def wrapper(ctx: click.Context, /, dry_run: bool, **options: object) -> None:
    """Run any Python program under the overlay, with every process that it starts."""
    command: list[str] = ctx.obj
    if not command or command == ["-m"]:
        raise click.UsageError("name a program: `-m MODULE ARGS...` or `SCRIPT ARGS...`", ctx)
    try:
        _start(command, dry_run, options)
    except OverlayError as error:
        raise _Failure(error) from error


def _start(command: Sequence[str], dry_run: bool, options: Mapping[str, object]) -> None:
    prepared = prepare(command, Options(**options), os.environ)  # type: ignore[arg-type]
    click.echo(render.summary(prepared.plan, brief=True), err=True)
    if dry_run:
        click.echo(preview(prepared))
    else:
        run(prepared)


@main.group()
def patches() -> None:
    """Look at the patches: what there is, what would be done, what was done."""


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@patches.command("list")
@_json
def list_patches(as_json: bool) -> None:
    """Every patch this overlay has."""
    registry = builtin()
    if as_json:
        _echo_json({"schema": 1, "patches": [render.patch_to_json(patch) for patch in registry]})
    else:
        click.echo(render.patch_table(registry))


_sglang = click.option(
    "--sglang", "path", metavar="PATH", help="An installed tree, an unpacked wheel, a checkout or a wheel."
)


@patches.command()
@click.argument("patch_id", metavar="ID")
@_sglang
@_json
def explain(patch_id: str, path: str | None, as_json: bool) -> None:
    """Why a patch exists, what it replaces, when it applies, how it was verified, and what the sglang at hand needs."""
    patch = builtin().get(patch_id, "the command line")
    here: Decision | None = None
    try:
        decided = _plan(path, "rocm", None, None, Options())
    except NoSglangError:
        at_hand = "no sglang is installed here: name one with --sglang"
    else:
        here = next(decision for decision in decided.decisions if decision.patch is patch)
        at_hand = f"sglang {decided.version.text or '(no version)'} on ROCm: {here.state.value}: {here.reason}"
    if as_json:
        _echo_json({"schema": 1, **render.patch_to_json(patch), "here": here and decision_to_json(here)})
    else:
        click.echo(render.explanation(patch, at_hand))


@patches.command()
@_sglang
@click.option("--platform", "kind", type=click.Choice(KINDS), help="Decide for this platform.")
@click.option("--arch", metavar="GFX", help="Decide for this GPU architecture, such as gfx942.")
@click.option("--aiter", metavar="VERSION", help="Decide as if this aiter were installed, or `none`.")
@_overriding
@_json
def plan(
    path: str | None, kind: str | None, arch: str | None, aiter: str | None, as_json: bool, **overrides: object
) -> None:
    """What would be done to an sglang, and why. Imports neither sglang nor torch."""
    decided = _plan(path, kind, arch, aiter, Options(**overrides))  # type: ignore[arg-type]
    _echo_json(decided.to_json()) if as_json else click.echo(render.summary(decided))


def _plan(path: str | None, kind: str | None, arch: str | None, aiter: str | None, options: Options) -> Plan:
    registry = builtin()
    gates.check(os.environ, registry.gates)
    environ = options.over(os.environ, registry)
    found = detect(environ)
    platform = Platform(
        kind or found.kind,
        arch or found.arch,
        None if aiter == "none" else aiter or found.aiter,
        found.vllm,
        found.simulated and kind is None,
    )
    return make_plan(registry, _tree(path), platform, environ)


def _tree(path: str | None) -> SourceTree:
    return open_tree(path) if path else installed_tree(launch_search_path(["-m"]))


@patches.command("diff")
@click.argument("patch_id", metavar="ID")
@_sglang
@_json
def show_diff(patch_id: str, path: str | None, as_json: bool) -> None:
    """The code a patch replaces in an sglang, beside the code it puts there."""
    found = diff_patch(builtin().get(patch_id, "the command line"), _tree(path))
    _echo_json(found.to_json()) if as_json else click.echo(render.patch_diff(found))


@patches.command("status")
@click.option("--all", "everything", is_flag=True, help="Also runs in which no process lives any more.")
@_json
def show_status(everything: bool, as_json: bool) -> None:
    """Every process of every run of this user, and the state of every patch in it."""
    rows = status.read_runs(status.run_root(os.environ))
    alive = {row["run"] for row in rows if row["alive"]}
    if not everything:
        rows = [row for row in rows if row["run"] in alive]
    _echo_json({"schema": status.SCHEMA, "processes": rows}) if as_json else click.echo(render.status_table(rows))


@main.command(cls=_LeadingForSglang, options_metavar="[OPTIONS] [SGLANG_ARGS]...")
@_json
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Look for what keeps a server here from starting, patching, overlapping streams or ending. Exit status 1 for a
    warning, 2 for an error. Imports neither sglang nor torch; SGLANG_ARGS are those of the launch that is meant."""
    report = examine(os.environ, ctx.obj)
    _echo_json(report.to_json()) if as_json else click.echo(str(report))
    ctx.exit(report.exit_code)


def _echo_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
