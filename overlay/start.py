"""What `amd-sglang launch` and `python -m overlay` do, once their arguments are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from overlay import render
from overlay.launch import prepare, preview, run
from overlay.options import Options

LAUNCH_SERVER = ("-m", "sglang.launch_server")


def start(command: Sequence[str], options: Mapping[str, object]) -> None:
    """Say what will be patched and become `python COMMAND...`, or with `dry_run` among the options say how that would
    be done. Raises OverlayError for whatever a user can cure."""
    given = dict(options)
    dry_run = given.pop("dry_run")
    prepared = prepare(command, Options(**given), os.environ)  # type: ignore[arg-type]
    print(render.summary(prepared.plan, brief=True), file=sys.stderr)
    if dry_run:
        print(preview(prepared))
    else:
        run(prepared)
