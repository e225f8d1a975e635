"""Puts the routes and the metrics into sglang's HTTP server, through the ledger, and never keeps it from starting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlay.errors import ConflictError
from overlay.install import Ledger, held
from overlay.model import Method, Slot, Target
from overlay.preimage import Proof
from overlay.say import say

if TYPE_CHECKING:
    from overlay.web.snapshot import Snapshot

#: Its `app` is what every way of serving HTTP serves: uvicorn, several uvicorn workers (which import it anew),
#: Granian, and the server of `--use-ray`.
SERVER = "sglang.srt.entrypoints.http_server"
ROUTES = "web:routes"
METRICS = "web:metrics"
SCRAPED = "web:scraped"

MIDDLEWARE = Slot("sglang.srt.utils.common", "add_prometheus_middleware")
#: The one body that it has had from 0.5.6.post2 to 0.5.23: a registry of every process's files, mounted at /metrics.
MIDDLEWARE_DIGEST = "990c764bed9c8e58"

_NO_METRICS = "no metrics of the patches"


def attach(
    ledger: Ledger, run_dir: Path | None, own: Callable[[], Mapping[str, object]], modules: Mapping[str, ModuleType]
) -> None:
    """Add `/overlay` and `/overlay/status` to the app of `SERVER`, which has just executed, and watch for the moment
    in which it adds `/metrics`. What goes wrong is said."""
    from overlay.web.snapshot import Snapshot

    app: Any = vars(modules[SERVER]).get("app")
    snapshot = Snapshot(run_dir, own, lambda: nodes(app))
    try:
        from overlay.web.routes import routes

        ledger.extend(ROUTES, app.router.routes, routes(snapshot))
    except Exception as error:  # noqa: BLE001 - a server without a status page serves all the same
        say(f"no /overlay in this server: {type(error).__name__}: {error}")
    try:
        slot = Slot(SERVER, MIDDLEWARE.qualname)
        ledger.install(METRICS, (Target(slot, Method.WRAP, lambda _original: _before(ledger, snapshot)),))
    except Exception as error:  # noqa: BLE001 - and so does one without our metrics
        say(f"{_NO_METRICS}: {type(error).__name__}: {error}")


def _before(ledger: Ledger, snapshot: Snapshot) -> Callable[..., object]:
    """A wrapper that mounts our `/metrics` first: of two mounts the earlier one answers, so that sglang's, which is
    added as ever, is back the moment ours is taken out."""

    def wrapper(wrapped: Callable[..., object], _instance: object, args: Any, kwargs: Any) -> object:
        try:
            defined = held(MIDDLEWARE)
            objection = Proof(sys.modules[MIDDLEWARE.module]).objection(MIDDLEWARE, defined, MIDDLEWARE_DIGEST)
            if objection is None and wrapped is not defined:
                objection = f"is not what {SERVER} calls"
            if objection is not None:
                raise ConflictError(f"{MIDDLEWARE} is not the code that is known: it {objection}")
            from overlay.web.metrics import mount

            app = args[0] if args else kwargs["app"]
            if SCRAPED not in ledger:
                ledger.extend(SCRAPED, app.router.routes, [mount(snapshot)])
        except Exception as error:  # noqa: BLE001 - sglang's own metrics are worth more than ours
            say(f"{_NO_METRICS}: {type(error).__name__}: {error}")
        return wrapped(*args, **kwargs)

    return wrapper


def nodes(app: Any) -> int | None:
    """How many nodes sglang runs on, where its app says so: it does in the single process of the common case."""
    count = getattr(getattr(app, "server_args", None), "nnodes", None)
    return count if isinstance(count, int) else None
