"""What the commands share: errors as one line, options that come first, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from overlay import arguments
from overlay.arguments import Option
from overlay.errors import OverlayError

_Function = TypeVar("_Function", bound=Callable[..., object])


class Failure(click.ClickException):
    """An error the user can cure: one line, no traceback."""

    def __init__(self, error: OverlayError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares a default on the class


class Commands(click.Group):
    """A group that imports some of its commands when they are named, so that a launch does not wait for the others:
    `elsewhere` maps a command's name to the module that has it under this name."""

    def __init__(self, *args: Any, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._elsewhere:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(self._elsewhere[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OverlayError as error:
            raise Failure(error) from error


class Leading(click.Command):
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


class LeadingForSglang(Leading):
    """sglang has no option of these names, so one that stands among its arguments is a mistake, unless `--` said so."""

    own_options_only_first = True


def option(declared: Option) -> Callable[[_Function], _Function]:
    """What click makes of an option."""
    if declared.metavar is None:
        return click.option(declared.name, is_flag=True, help=declared.help)
    kind = click.IntRange(min=0) if declared.counts else str
    return click.option(
        declared.name, type=kind, multiple=declared.multiple, metavar=declared.metavar, help=declared.help
    )


packs_option = option(arguments.PACKS)


def decorated(function: _Function, decorators: Sequence[Callable[[_Function], _Function]]) -> _Function:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def overriding(function: _Function) -> _Function:
    return decorated(function, tuple(map(option, arguments.OVERRIDES)))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def echo_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))
