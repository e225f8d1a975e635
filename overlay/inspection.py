"""`amd-sglang patches ...`: what there is, what would be done, what was done."""

from __future__ import annotations

import os

import click

from overlay import denylist, gates, render, status
from overlay.cli import echo_json, json_option, overriding, packs_option
from overlay.diff import diff_patch
from overlay.errors import NoSglangError
from overlay.gates import asked
from overlay.model import Decision
from overlay.named_tree import open_tree
from overlay.options import Options
from overlay.plan import Plan, decision_to_json, make_plan
from overlay.platform import KINDS, Platform, detect
from overlay.registry import load
from overlay.render_status import served_status, status_table
from overlay.source import SourceTree, installed_tree, launch_search_path
from overlay.status_schema import SCHEMA as STATUS_SCHEMA
from overlay.survey import SCHEMA, parse_slot, survey, tabulate


@click.group()
def patches() -> None:
    """Look at the patches: what there is, what would be done, what was done."""


@patches.command("list")
@packs_option
@json_option
def list_patches(packs: tuple[str, ...], as_json: bool) -> None:
    """Every patch this overlay has, and those of the packs that are named."""
    environ = asked(os.environ, packs)
    registry = load(environ)
    denied = denylist.on(environ, detect(environ))
    if as_json:
        rows = [{**render.patch_to_json(patch), "denied": denied.get(patch.id)} for patch in registry]
        echo_json({"schema": 1, "patches": rows})
    else:
        click.echo(render.patch_table(registry, denied))


_sglang = click.option(
    "--sglang", "path", metavar="PATH", help="An installed tree, an unpacked wheel, a checkout or a wheel."
)


@patches.command()
@click.argument("patch_id", metavar="ID")
@_sglang
@packs_option
@json_option
def explain(patch_id: str, path: str | None, packs: tuple[str, ...], as_json: bool) -> None:
    """Why a patch exists, what it replaces, when it applies, how it was verified, and what the sglang at hand needs."""
    patch = load(asked(os.environ, packs)).get(patch_id, "the command line")
    here: Decision | None = None
    try:
        decided = _plan(path, "rocm", None, None, Options(packs=packs))
    except NoSglangError:
        at_hand = "no sglang is installed here: name one with --sglang"
    else:
        here = next(decision for decision in decided.decisions if decision.patch.id == patch_id)
        at_hand = f"sglang {decided.version.text or '(no version)'} on ROCm: {here.state.value}: {here.reason}"
    if as_json:
        echo_json({"schema": 1, **render.patch_to_json(patch), "here": here and decision_to_json(here)})
    else:
        click.echo(render.explanation(patch, at_hand))


@patches.command()
@_sglang
@click.option("--platform", "kind", type=click.Choice(KINDS), help="Decide for this platform.")
@click.option("--arch", metavar="GFX", help="Decide for this GPU architecture, such as gfx942.")
@click.option("--aiter", metavar="VERSION", help="Decide as if this aiter were installed, or `none`.")
@overriding
@packs_option
@json_option
def plan(
    path: str | None, kind: str | None, arch: str | None, aiter: str | None, as_json: bool, **options: object
) -> None:
    """What would be done to an sglang, and why. Imports neither sglang nor torch."""
    decided = _plan(path, kind, arch, aiter, Options(**options))  # type: ignore[arg-type]
    echo_json(decided.to_json()) if as_json else click.echo(render.summary(decided))


def _plan(path: str | None, kind: str | None, arch: str | None, aiter: str | None, options: Options) -> Plan:
    registry, environ = options.applied(os.environ)
    found = detect(environ)
    platform = Platform(
        kind or found.kind,
        arch or found.arch,
        None if aiter == "none" else aiter or found.aiter,
        found.vllm,
        found.simulated and kind is None,
    )
    return make_plan(registry, _tree(path), platform, denylist.handing_over(environ, platform))


def _tree(path: str | None) -> SourceTree:
    return open_tree(path) if path else installed_tree(launch_search_path(["-m"]))


@patches.command("diff")
@click.argument("patch_id", metavar="ID")
@_sglang
@packs_option
@json_option
def show_diff(patch_id: str, path: str | None, packs: tuple[str, ...], as_json: bool) -> None:
    """The code a patch replaces in an sglang, beside the code it puts there."""
    found = diff_patch(load(asked(os.environ, packs)).get(patch_id, "the command line"), _tree(path))
    echo_json(found.to_json()) if as_json else click.echo(render.patch_diff(found))


@patches.command()
@click.argument("slots", metavar="SLOT...", nargs=-1, required=True)
@click.option("--sglang", "paths", metavar="PATH", multiple=True, help="An sglang to read; may be given several times.")
@json_option
@click.pass_context
def fingerprint(ctx: click.Context, /, slots: tuple[str, ...], paths: tuple[str, ...], as_json: bool) -> None:
    """The digests that the images of a patch are written from. SLOT is package.module:Class.attribute; exit status 1
    if no image can be made of one of them."""
    trees = [open_tree(path) for path in paths] or [_tree(None)]
    found = survey(list(dict.fromkeys(map(parse_slot, slots))), trees)
    if as_json:
        echo_json({"schema": SCHEMA, "slots": [one.to_json() for one in found]})
    else:
        click.echo(tabulate(found))
    ctx.exit(1 if any(one.problem for one in found) else 0)


@patches.command("status")
@click.option("--all", "everything", is_flag=True, help="Also runs in which no process lives any more.")
@click.option("--url", metavar="URL", help="Ask the server at this address, such as http://host:30000.")
@json_option
def show_status(everything: bool, url: str | None, as_json: bool) -> None:
    """Every process of every run of this user, and the state of every patch in it; or, with --url, of one server
    anywhere. The API key of that server is read from AMD_SGLANG_API_KEY, never from the command line."""
    if url is not None:
        from overlay.web.client import ask

        answer = ask(url, gates.API_KEY.read(os.environ))
        echo_json(answer) if as_json else click.echo(served_status(answer))
        return
    rows = status.read_runs(status.run_root(os.environ))
    alive = {row["run"] for row in rows if row["alive"]}
    if not everything:
        rows = [row for row in rows if row["run"] in alive]
    echo_json({"schema": STATUS_SCHEMA, "processes": rows}) if as_json else click.echo(status_table(rows))
