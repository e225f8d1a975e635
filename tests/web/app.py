"""The routes on an app of their own, served by uvicorn in a thread, over status files that a test writes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from overlay import status
from overlay.status_schema import SCHEMA
from overlay.web.routes import routes
from overlay.web.snapshot import Snapshot


def patch(id_: str, state: str = "applied", reason: str = "back-port", **more: object) -> dict[str, object]:
    return {"id": id_, "state": state, "reason": reason, **more}


def document(role: str, *patches: dict[str, object], **more: object) -> dict[str, Any]:
    """The status of a process that serves: this one, unless `pid` says otherwise."""
    pid = more.get("pid", os.getpid())
    assert isinstance(pid, int)
    return {
        "schema": SCHEMA, "pid": pid, "started": status.started(pid), **status.machine(), "role": role,
        "ranks": {}, "ready": True, "overlay": "0.1.0", "plan": "1b4953a47a8122c3", "sglang": {"version": "0.5.9"},
        "platform": {"kind": "rocm", "arch": "gfx942", "simulated": True}, "patches": list(patches), **more,
    }  # fmt: skip


def write(run_dir: Path, one: dict[str, Any]) -> None:
    status.write(run_dir, f"{one['pid']}.json", one)


@contextmanager
def serving(run_dir: Path, own: dict[str, Any], nodes: int | None = None, below: str = "") -> Iterator[str]:
    """The address of a server that says `own` of itself and has the files of `run_dir`. It stands behind a proxy that
    takes `below` off the front of every path."""
    app = FastAPI()
    app.router.routes.extend(routes(Snapshot(run_dir, lambda: own, lambda: nodes)))

    async def behind_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, **({"path": scope["path"].removeprefix(below)} if "path" in scope else {})}, receive, send)

    server = uvicorn.Server(uvicorn.Config(behind_proxy, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
