"""The routes and the metrics in the real app of one release's HTTP server, behind its own check of API keys.

Not collected by name: `test_in_releases.py` runs this file under the overlay, in the simulated ROCm.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import Counter

from overlay import runtime
from overlay.web import attach
from tests.patches.in_release.vllm_placeholder import provide_vllm

KEY = {"Authorization": "Bearer sesame"}
PATHS = ("/overlay", "/overlay/status")
UPSTREAM = Counter("upstream_requests_total", "Stands for a metric of sglang's.")


@pytest.fixture(scope="module")
def server() -> Any:
    provide_vllm()
    from sglang.srt.entrypoints import http_server

    return http_server


@pytest.fixture
def app(server: Any) -> Iterator[Any]:
    """The app, whose routes and middlewares are afterwards what they were before."""
    routes, middlewares = list(server.app.router.routes), list(server.app.user_middleware)
    server.app.middleware_stack = None
    yield server.app
    server.app.router.routes[:], server.app.user_middleware[:] = routes, middlewares
    server.app.middleware_stack = None


@pytest.fixture
def client(app: Any) -> TestClient:
    """Talks to the app without its lifespan, which would load a model."""
    return TestClient(app)


@pytest.fixture
def behind_key(app: Any) -> TestClient:
    try:
        from sglang.srt.utils.auth import add_api_key_middleware
    except ImportError:
        from sglang.srt.utils import add_api_key_middleware
    wanted = inspect.signature(add_api_key_middleware).parameters
    keys = {"api_key": "sesame", "admin_api_key": "open"}
    add_api_key_middleware(app, **{name: key for name, key in keys.items() if name in wanted})
    return TestClient(app)


def test_the_status_is_this_process(client: TestClient) -> None:
    answer = client.get("/overlay/status")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    document = answer.json()
    (process,) = document["processes"]
    assert document["healthy"] is True and process["alive"] is True and process["pid"] == os.getpid()
    assert {patch["id"] for patch in process["patches"]} == {d.patch.id for d in runtime.current().plan.decisions}  # type: ignore[union-attr]


def test_the_page_may_load_nothing(client: TestClient) -> None:
    answer = client.get("/overlay")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PATHS)
def test_both_can_only_be_read(client: TestClient, path: str) -> None:
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert {client.request(method, path).status_code for method in ("POST", "PUT", "PATCH", "DELETE")} == {405}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_both_are_behind_the_key_of_the_server(behind_key: TestClient, method: str, path: str) -> None:
    ask = behind_key.request
    assert ask(method, path).status_code == 401
    assert ask(method, path, headers={"Authorization": "Bearer open"}).status_code == 401
    assert ask(method, path, headers=KEY).status_code == 200


def test_the_api_document_is_upstreams_own(app: Any) -> None:
    assert "/generate" in app.openapi()["paths"] and not set(PATHS) & app.openapi()["paths"].keys()


def scraped(client: TestClient) -> str:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    text: str = answer.text
    return text


def test_a_scrape_has_sglangs_metrics_and_ours_and_without_ours_sglangs(server: Any, app: Any) -> None:
    active = runtime.current()
    assert active is not None
    UPSTREAM.inc()
    server.add_prometheus_middleware(app)
    client = TestClient(app)
    both = scraped(client)
    assert "upstream_requests_total " in both and "amd_sglang_healthy 1.0" in both
    assert 'amd_sglang_patch_state{patch="gemma-rmsnorm",rank="",role="starting"}' in both
    active.ledger.uninstall(attach.SCRAPED)
    alone = scraped(client)
    assert "upstream_requests_total " in alone and "amd_sglang" not in alone


def test_where_the_middleware_is_somebody_elses_sglangs_metrics_stay(
    server: Any, app: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sglang.srt.utils import common

    def add_prometheus_middleware(app: Any) -> None:
        raise AssertionError("never called")

    monkeypatch.setattr(common, "add_prometheus_middleware", add_prometheus_middleware)
    server.add_prometheus_middleware(app)
    assert "amd_sglang" not in scraped(TestClient(app))
    assert "no metrics of the patches: ConflictError: sglang.srt.utils.common:" in capsys.readouterr().err


def test_uninstalled_the_server_is_as_it_was(server: Any, app: Any) -> None:
    """Last: it takes out what the others are about."""
    active = runtime.current()
    assert active is not None
    before = [route for route in app.router.routes if getattr(route, "path", "") not in PATHS]
    active.ledger.uninstall(attach.ROUTES)
    active.ledger.uninstall(attach.METRICS)
    assert app.router.routes == before
    assert vars(server)["add_prometheus_middleware"].__module__ == "sglang.srt.utils.common"
    assert not hasattr(vars(server)["add_prometheus_middleware"], "__amd_sglang_patch__")
    assert TestClient(app).get("/overlay/status").status_code == 404
