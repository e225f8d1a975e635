"""Becomes the program that measures, in the environment in which a server would run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from overlay import delivery, denylist, gates
from overlay.errors import NoSglangError
from overlay.launch import become, prepare
from overlay.options import Options
from overlay.registry import load
from overlay.verify.request import Request, check_plot


def start(request: Request, options: Options, environ: Mapping[str, str]) -> NoReturn:
    """Verify what a launch with these options would apply. What is denied is verified like the rest.

    Raises OverlayError for whatever a user can cure.
    """
    check_plot(request.plot)
    registry = load(gates.asked(environ, options.packs))
    for one in request.ids:
        registry.get(one, "the command line")
    try:
        prepared = prepare(request.arguments(), options, environ, heed_denylist=False)
    except NoSglangError as error:
        raise NoSglangError(f"{error} --unplanned verifies kernels without an sglang.") from error
    become([*delivery.interpreter(), *request.planned(prepared.plan).arguments()], prepared.environ)


def start_unplanned(request: Request, options: Options, environ: Mapping[str, str]) -> NoReturn:
    """Verify kernels on the GPU at hand, whoever made it, with any sglang or none. Raises like `start`."""
    check_plot(request.plot)
    registry, merged = options.applied(environ)
    chosen = request.unplanned(registry)
    ready = delivery.environment(denylist.without(merged))
    become([*delivery.interpreter(), *chosen.arguments()], ready)
