"""`amd-sglang patches ...`: what there is, what would be done, what was done."""

from __future__ import annotations

import os

import click

from overlay import gates, render, status
from overlay.cli import echo_json, json_option, overriding
from overlay.diff import diff_patch
from overlay.errors import NoSglangError
from overlay.launch import Options
from overlay.model import Decision
from overlay.plan import Plan, decision_to_json, make_plan
from overlay.platform import KINDS, Platform, detect
from overlay.registry import builtin
from overlay.source import SourceTree, installed_tree, launch_search_path, open_tree


@click.group()
def patches() -> None:
    """Look at the patches: what there is, what would be done, what was done."""


@patches.command("list")
@json_option
def list_patches(as_json: bool) -> None:
    """Every patch this overlay has."""
    registry = builtin()
    if as_json:
        echo_json({"schema": 1, "patches": [render.patch_to_json(patch) for patch in registry]})
    else:
        click.echo(render.patch_table(registry))


_sglang = click.option(
    "--sglang", "path", metavar="PATH", help="An installed tree, an unpacked wheel, a checkout or a wheel."
)


@patches.command()
@click.argument("patch_id", metavar="ID")
@_sglang
@json_option
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
        echo_json({"schema": 1, **render.patch_to_json(patch), "here": here and decision_to_json(here)})
    else:
        click.echo(render.explanation(patch, at_hand))


@patches.command()
@_sglang
@click.option("--platform", "kind", type=click.Choice(KINDS), help="Decide for this platform.")
@click.option("--arch", metavar="GFX", help="Decide for this GPU architecture, such as gfx942.")
@click.option("--aiter", metavar="VERSION", help="Decide as if this aiter were installed, or `none`.")
@overriding
@json_option
def plan(
    path: str | None, kind: str | None, arch: str | None, aiter: str | None, as_json: bool, **overrides: object
) -> None:
    """What would be done to an sglang, and why. Imports neither sglang nor torch."""
    decided = _plan(path, kind, arch, aiter, Options(**overrides))  # type: ignore[arg-type]
    echo_json(decided.to_json()) if as_json else click.echo(render.summary(decided))


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
@json_option
def show_diff(patch_id: str, path: str | None, as_json: bool) -> None:
    """The code a patch replaces in an sglang, beside the code it puts there."""
    found = diff_patch(builtin().get(patch_id, "the command line"), _tree(path))
    echo_json(found.to_json()) if as_json else click.echo(render.patch_diff(found))


@patches.command("status")
@click.option("--all", "everything", is_flag=True, help="Also runs in which no process lives any more.")
@json_option
def show_status(everything: bool, as_json: bool) -> None:
    """Every process of every run of this user, and the state of every patch in it."""
    rows = status.read_runs(status.run_root(os.environ))
    alive = {row["run"] for row in rows if row["alive"]}
    if not everything:
        rows = [row for row in rows if row["run"] in alive]
    echo_json({"schema": status.SCHEMA, "processes": rows}) if as_json else click.echo(render.status_table(rows))
