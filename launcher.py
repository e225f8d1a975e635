"""The command line: `amd-sglang`, and `python -m overlay`. Arguments and text only; everything else is in `overlay`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import click

import overlay
from overlay import render
from overlay.cli import (
    OVERRIDES,
    Commands,
    Failure,
    Leading,
    LeadingForSglang,
    decorated,
    echo_json,
    json_option,
    packs_option,
)
from overlay.errors import OverlayError
from overlay.launch import Options, prepare, preview, run
from overlay.packs import asked

_Function = TypeVar("_Function", bound=Callable[..., object])


def _launch_options(function: _Function) -> _Function:
    return decorated(
        function,
        (
            click.option("--strict", is_flag=True, help="Leave, rather than serve without a patch that was planned."),
            click.option("--enable", multiple=True, metavar="ID", help="Switch a patch on that is off by default."),
            click.option("--disable", multiple=True, metavar="ID", help="Switch a patch off."),
            *OVERRIDES,
            packs_option,
            click.option(
                "--shadow",
                type=click.IntRange(min=0),
                metavar="N",
                help="Let upstream compute the first N calls of each kernel too, and drop one that is off.",
            ),
            click.option("--simulate", metavar="ARCH", help="Simulate this ROCm GPU on the CPU (gfx942, gfx950)."),
            click.option("--dry-run", is_flag=True, help="Print the plan and the command, and start nothing."),
        ),
    )


@click.group(cls=Commands, elsewhere={"patches": "overlay.inspection", "verify": "overlay.verify.command"})
@click.version_option(overlay.__version__, prog_name="amd-sglang")
def main() -> None:
    """Run SGLang on AMD ROCm with back-ported optimisations and fixes."""


@main.command(cls=LeadingForSglang, options_metavar="[OPTIONS] SGLANG_ARGS...", add_help_option=True)
@_launch_options
@click.pass_context
def launch(ctx: click.Context, /, dry_run: bool, **options: object) -> None:
    """Start `sglang.launch_server` under the overlay. SGLANG_ARGS go to it untouched."""
    _start(["-m", "sglang.launch_server", *ctx.obj], dry_run, options)


@click.command(cls=Leading, options_metavar="[OPTIONS] (-m MODULE | SCRIPT) ARGS...")
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
        raise Failure(error) from error


def _start(command: Sequence[str], dry_run: bool, options: Mapping[str, object]) -> None:
    prepared = prepare(command, Options(**options), os.environ)  # type: ignore[arg-type]
    click.echo(render.summary(prepared.plan, brief=True), err=True)
    if dry_run:
        click.echo(preview(prepared))
    else:
        run(prepared)


@main.command(cls=LeadingForSglang, options_metavar="[OPTIONS] [SGLANG_ARGS]...")
@packs_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, packs: tuple[str, ...], as_json: bool) -> None:
    """Look for what keeps a server here from starting, patching, overlapping streams or ending. Exit status 1 for a
    warning, 2 for an error. Imports neither sglang nor torch; SGLANG_ARGS are those of the launch that is meant."""
    from overlay.doctor import examine  # more modules than a launch needs

    report = examine(asked(os.environ, packs), ctx.obj)
    echo_json(report.to_json()) if as_json else click.echo(str(report))
    ctx.exit(report.exit_code)


if __name__ == "__main__":
    main()
