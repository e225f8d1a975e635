"""The commands of `amd-sglang`, and that of `python -m overlay`. Arguments and text only."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import click

import overlay
from overlay import arguments
from overlay.cli import (
    Commands,
    Failure,
    Leading,
    LeadingForSglang,
    decorated,
    echo_json,
    json_option,
    option,
    packs_option,
)
from overlay.errors import OverlayError
from overlay.gates import asked
from overlay.start import LAUNCH_SERVER, start

_Function = TypeVar("_Function", bound=Callable[..., object])


def _launch_options(function: _Function) -> _Function:
    return decorated(function, tuple(map(option, arguments.LAUNCH)))


@click.group(cls=Commands, elsewhere={"patches": "overlay.inspection", "verify": "overlay.verify.command"})
@click.version_option(overlay.__version__, prog_name="amd-sglang")
def main() -> None:
    """Run SGLang on AMD ROCm with back-ported optimisations and fixes."""


@main.command(cls=LeadingForSglang, options_metavar="[OPTIONS] SGLANG_ARGS...", add_help_option=True)
@_launch_options
@click.pass_context
def launch(ctx: click.Context, /, **options: object) -> None:
    """Start `sglang.launch_server` under the overlay. SGLANG_ARGS go to it untouched."""
    start([*LAUNCH_SERVER, *ctx.obj], options)


@click.command(cls=Leading, options_metavar="[OPTIONS] (-m MODULE | SCRIPT) ARGS...")
@_launch_options
@click.pass_context
def wrapper(ctx: click.Context, /, **options: object) -> None:
    """Run any Python program under the overlay, with every process that it starts."""
    command: list[str] = ctx.obj
    if not command or command == ["-m"]:
        raise click.UsageError("name a program: `-m MODULE ARGS...` or `SCRIPT ARGS...`", ctx)
    try:
        start(command, options)
    except OverlayError as error:
        raise Failure(error) from error


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
