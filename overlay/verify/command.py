"""`amd-sglang verify`: arguments and text only. Loads no torch."""

from __future__ import annotations

import os

import click

from overlay import denylist, denylist_file
from overlay.cli import json_option, overriding, packs_option
from overlay.errors import UnknownPatchError
from overlay.gates import asked
from overlay.options import Options
from overlay.registry import load
from overlay.verify.request import Request
from overlay.verify.start import start, start_unplanned


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--model-path", metavar="PATH", help="Verify over the sizes of this model: a folder or a config.json.")
@click.option("--tp", type=click.IntRange(min=1), default=1, metavar="N", help="Ranks that share the model's heads.")
@click.option("--plot", metavar="FILE", help="Draw the ratios: .png and the like by matplotlib, .svg without it.")
@click.option("--unplanned", is_flag=True, help="Also what no launch would use here: without sglang, on any GPU.")
@click.option("--simulate", metavar="ARCH", help="Run the kernels in Triton's interpreter, on tiny shapes.")
@click.option("--clear", is_flag=True, help="Verify nothing: lift the denial of these patches, or of all.")
@overriding
@packs_option
@json_option
def verify(
    ids: tuple[str, ...],
    model_path: str | None,
    tp: int,
    plot: str | None,
    unplanned: bool,
    clear: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Run the kernels of the patches that a launch would apply on this GPU: values against their definitions on
    poisoned memory, graph capture and replay, speed against what they replace. A patch whose kernel fails is denied:
    no launch on such a GPU applies it until `--clear`. Exit status 1 if one failed."""
    chosen = Options(**options)  # type: ignore[arg-type]
    if clear:
        _clear(ids, chosen)
        return
    request = Request(ids, model_path, tp, plot, as_json)
    (start_unplanned if unplanned else start)(request, chosen, os.environ)


def _clear(ids: tuple[str, ...], options: Options) -> None:
    path = denylist.path_of(os.environ)
    if not ids:
        denylist_file.remove(path)
        click.echo(f"nothing is denied any more: {path} is gone")
        return
    listed = {entry.patch for entry in denylist.read(path)}
    known = load(asked(os.environ, options.packs)).ids
    for one in ids:
        if one not in {*known, *listed}:
            raise UnknownPatchError(one, "the command line", known)
    for entry in denylist.clear(path, ids):
        click.echo(f"{entry.patch} is no longer denied on {entry.where}")
    for one in sorted(set(ids) - listed):
        click.echo(f"{one} was not denied")
