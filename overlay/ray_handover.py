"""How the overlay reaches the workers of a Ray cluster, which inherit nothing from the process that starts a server.

At every `ray.init`, also the one that `sglang.srt.ray.engine` leaves to Ray itself, Ray asks the hook that
RAY_RUNTIME_ENV_HOOK names for the runtime environment (ray/_private/worker.py, _maybe_modify_runtime_env). All actors
of the program get it, as variables that their interpreters start with. Nothing of sglang's or Ray's is touched.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from overlay import boot, gates

#: Imported where sglang runs its schedulers as Ray actors: --use-ray and RayEngine, since 0.5.10.
_ENGINE = "sglang.srt.ray.engine"
_ADDED = f"{gates.PREFIX}ADDED"
#: A runtime environment is shown to everybody who may look at the cluster.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


def noted(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """`after`, and in it the names of the variables not ours by which a launch made it differ from `before`."""
    changed = {name for name, value in after.items() if before.get(name) != value and not name.startswith(gates.PREFIX)}
    names = sorted(changed.union(filter(None, before.get(_ADDED, "").split(","))))
    return {**after, _ADDED: ",".join(names)} if names else dict(after)


def hook(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a program gave to `ray.init`, and our variables, where it does not set them itself."""
    users = os.environ.get(boot.USERS_RAY_HOOK)
    if users:
        module, _, name = users.rpartition(".")
        runtime_env = getattr(importlib.import_module(module), name)(runtime_env)
    given: dict[str, Any] = dict(runtime_env or {})
    return {**given, "env_vars": {**carried(os.environ), **(given.get("env_vars") or {})}}


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker needs to make the plan that the launcher made: the switches, ours and sglang's, and what the
    launcher has set besides. No secret."""
    added = environ.get(_ADDED, "").split(",")
    wanted = {name for name in environ if name.startswith((gates.PREFIX, "SGLANG_"))}.union(added) & environ.keys()
    return {name: environ[name] for name in sorted(wanted) if not _SECRET.search(name)}


def objection(environ: Mapping[str, str]) -> str | None:
    """Why the Ray actors of this process run without the overlay, and what to type; None if they run with it, or there
    are none."""
    ray: Any = sys.modules.get("ray")
    if _ENGINE not in sys.modules or ray is None or not ray.is_initialized():
        return None
    # What the actors that this process makes inherit: of its own `ray.init`, or, in an actor, of the one above it.
    reached = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    if reached.get(boot.GATE) == "1":
        return None
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in carried(environ).items())
    return (
        "sglang's Ray actors run without the overlay, which had no part in `ray.init`: below `uv run`, for instance, "
        f"it asks no {boot.RAY_HOOK}. Start Ray on every node with these variables, and the overlay installed there: "
        f"env {settings} ray start ..."
    )
