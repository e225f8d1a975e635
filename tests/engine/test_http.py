"""The real HTTP server of 0.5.9, started by `amd-sglang launch` on the command line of `sglang.launch_server`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.__main__ import SERVE_ARGUMENTS
from demo.server import Server, ServerError
from overlay import status
from overlay.web.client import NoStatusError, ask
from tests.engine.conftest import COUNT
from tests.engine.generate import PROMPTS
from tests.engine.runs import gone

AMD_SGLANG = Path(sys.executable).with_name("amd-sglang")
OURS = "triton:patches.kernels.gemma_rmsnorm._gemma_rmsnorm_kernel"
pytestmark = pytest.mark.engine


KEY = "sesame"


def serve(
    checkpoint: Path, folder: Path, *extra: str, options: tuple[str, ...] = (), key: str | None = None, **environ: str
) -> Server:
    place = ("--host", "127.0.0.1", "--port", "{port}")
    model = ("--model-path", str(checkpoint), "--served-model-name", "default", "--dtype", "bfloat16")
    keyed = ("--api-key", key) if key else ()
    return Server(
        [AMD_SGLANG, "launch", "--simulate", "gfx942", *options, *model, *place, *SERVE_ARGUMENTS, *keyed, *extra],
        key=key,
        log=folder / "server.log",
        environment={"AMD_SGLANG_RUN_DIR": str(folder / "runs"), **environ},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(checkpoint: Path, folder: Path) -> Iterator[Server]:
    with serve(checkpoint, folder, "--enable-metrics", key=KEY) as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="module")
def replicas(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two schedulers, whose first calls run both ways. Its last test ends it."""
    arguments, options = ("--dp-size", "2", "--enable-metrics"), ("--shadow", "5")
    with serve(checkpoint, tmp_path_factory.mktemp("replicas"), *arguments, options=options) as started:
        started.wait_ready()
        yield started


def fetch(url: str, method: str = "GET", key: str | None = KEY) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urlopen(Request(url, method=method, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def gauges(server: Server, patch: str) -> dict[tuple[str, str], float]:
    """(role, rank) -> the state of a patch, as Prometheus scrapes it: without a key, as sglang has it for /metrics."""
    _, text = fetch(f"{server.url}/metrics", key=None)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert any(name.startswith("sglang:") for name in families)
    return {
        (one.labels["role"], one.labels["rank"]): one.value
        for one in families["amd_sglang_patch_state"].samples
        if one.labels["patch"] == patch
    }


def test_every_interface_answers_with_transformers_tokens(server: Server, transformers_tokens: list[list[int]]) -> None:
    for prompt, expected in zip(PROMPTS, transformers_tokens, strict=True):
        assert server.generate(prompt, COUNT)["output_ids"] == expected
    whole = server.completions("The quick brown fox", COUNT)["choices"][0]["text"]
    pieces = list(server.stream("The quick brown fox", COUNT))
    assert len(pieces) > 1 and "".join(pieces) == whole != ""


def test_no_request_is_lost_under_load(server: Server, transformers_tokens: list[list[int]]) -> None:
    """200 requests from 16 clients at once. Two tokens each: one of the prefill, one of a shared decode batch."""
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda i: server.generate(PROMPTS[i % 2], 2)["output_ids"], range(200)))
    assert answers == [transformers_tokens[i % 2][:2] for i in range(200)]


def test_the_status_is_served_behind_the_key_of_the_server(server: Server, checkpoint: Path) -> None:
    for path in ("/overlay", "/overlay/status"):
        assert [fetch(server.url + path, key=key)[0] for key in (None, "wrong", KEY)] == [401, 401, 200]
        assert fetch(server.url + path, "HEAD") == (200, "")
        assert {fetch(server.url + path, method)[0] for method in ("POST", "PUT", "DELETE")} == {405}
    assert "<title>amd-sglang</title>" in fetch(f"{server.url}/overlay")[1]
    code, text = fetch(f"{server.url}/overlay/status")
    assert code == 200 and not any(word in text for word in (str(checkpoint), "served-model-name", KEY))


def test_the_status_over_http_is_every_process_of_the_server(server: Server, folder: Path) -> None:
    answer = ask(server.url, KEY)
    assert (answer["healthy"], answer["nodes"], answer["note"]) == (True, 1, None)
    rows = {row["pid"]: row for row in answer["processes"]}
    assert {row["role"] for row in rows.values() if row["ready"]} == {"http-server", "scheduler", "detokenizer"}
    assert rows.keys() == {row["pid"] for row in status.read_runs(folder / "runs")}
    assert rows.keys() <= {process.pid for process in server.processes()}
    (scheduler,) = (row for row in rows.values() if row["role"] == "scheduler")
    (gemma,) = (patch for patch in scheduler["patches"] if patch["id"] == "gemma-rmsnorm")
    assert gemma["state"] == "applied" and gemma["counters"]["calls"] > 0


def test_prometheus_scrapes_sglangs_metrics_and_the_patches(server: Server) -> None:
    assert gauges(server, "gemma-rmsnorm") == {("http-server", ""): 0, ("scheduler", ""): 1, ("detokenizer", ""): 0}


def test_status_files_are_private_and_hold_no_argument_of_the_server(
    server: Server, checkpoint: Path, folder: Path
) -> None:
    assert any(str(checkpoint) in process.name for process in server.processes())
    files = list((folder / "runs").glob("*/*.json"))
    assert len(files) >= 3
    for path in files:
        text = path.read_text()
        assert str(checkpoint) not in text and "served-model-name" not in text
        assert path.stat().st_mode & 0o077 == 0 == path.parent.stat().st_mode & 0o077


def test_sigterm_ends_every_process(server: Server, folder: Path) -> None:
    """Last of this server: it ends it. sglang ends its own tree with SIGKILL once it has drained."""
    assert len(server.children()) >= 2
    server.stop(timeout=60)
    assert "Gracefully exiting" in server.log_tail(60)
    assert not [row for row in status.read_runs(folder / "runs") if row["alive"]]


def test_every_process_reports_and_the_schedulers_prove_the_patch(replicas: Server) -> None:
    for _ in range(4):
        replicas.generate(PROMPTS[0], 1)
    time.sleep(1.5)  # the simulation writes its counters twice a second
    rows: list[Any] = [row for row in status.read_runs(replicas.log.parent / "runs") if row["alive"]]
    assert {row["pid"] for row in rows} <= {process.pid for process in replicas.processes()}
    roles = Counter((row["role"], tuple(row["ranks"].items())) for row in rows if row["ready"])
    assert roles == {
        ("http-server", ()): 1,
        ("dp-controller", ()): 1,
        ("detokenizer", ()): 1,
        ("scheduler", (("dp", 0),)): 1,
        ("scheduler", (("dp", 1),)): 1,
    }
    for row in rows:
        if row["role"] == "scheduler":
            states = {patch["id"]: patch["state"] for patch in row["patches"]}
            assert states["gemma-rmsnorm"] == "applied"
            assert row["calls"][OURS] == row["calls"]["op:GemmaRMSNorm.forward_hip"] > 0
            (norm, greedy) = (one for one in row["patches"] if one["id"] in ("gemma-rmsnorm", "greedy-sampler"))
            assert norm["counters"] == {"calls": row["calls"][OURS], "fallbacks": 0, "failures": 0, "shadowed": 5}
            assert norm["worst_error"] <= 1 and greedy["worst_error"] == 0


def test_a_scheduler_that_is_killed_is_never_shown_as_healthy(replicas: Server) -> None:
    """Last of this server. sglang 0.5.9 goes on listening with a scheduler gone."""
    before = ask(replicas.url)
    assert before["healthy"] is True
    pid = next(row["pid"] for row in before["processes"] if row["ranks"] == {"dp": 1})
    os.kill(pid, signal.SIGKILL)
    while status.started(pid) is not None:  # the kernel takes its memory back first
        time.sleep(0.01)
    after = ask(replicas.url)
    assert (after["healthy"], after["reasons"]) == (False, [f"scheduler dp1 (pid {pid}) has ended"])
    assert [row["pid"] for row in after["processes"] if not row["alive"]] == [pid]
    found = gauges(replicas, "gemma-rmsnorm")
    assert (found["scheduler", "dp0"], found["scheduler", "dp1"]) == (1, -1)
    replicas.kill()
    with pytest.raises(NoStatusError, match="does not answer"):
        ask(replicas.url)
    rows = status.read_runs(replicas.log.parent / "runs")
    assert len(rows) == 5 and not any(row["alive"] for row in rows)


def test_a_port_in_use_is_reported_by_sglang_itself(checkpoint: Path, tmp_path: Path) -> None:
    server = serve(checkpoint, tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with server:
            deadline = time.monotonic() + 120
            while "address already in use" not in server.log.read_text() and time.monotonic() < deadline:
                time.sleep(0.2)
            assert "address already in use" in server.log_tail()


def test_strict_never_serves_when_a_scheduler_cannot_apply(checkpoint: Path, tmp_path: Path) -> None:
    """With replicas, between which and the server a controller waits: in a thread, for each of them, for ever."""
    switches = {"AMD_SGLANG_GEMMA_RMSNORM_BACKEND": "aiter"}
    with serve(checkpoint, tmp_path, "--dp-size", "2", options=("--strict",), **switches) as server:
        with pytest.raises(ServerError, match="ended with status 1 before it was ready"):
            server.wait_ready(timeout=120)
        assert gone(server.processes)
        log = server.log.read_text()
    assert "--strict forbids to serve without it" in log and "ready to roll" not in log


def test_without_strict_the_same_server_serves_unpatched_and_says_so(
    checkpoint: Path, tmp_path: Path, transformers_tokens: list[list[int]]
) -> None:
    with serve(checkpoint, tmp_path, AMD_SGLANG_GEMMA_RMSNORM_BACKEND="aiter") as server:
        server.wait_ready()
        assert server.generate(PROMPTS[0], COUNT)["output_ids"] == transformers_tokens[0]
        log = server.log.read_text()
    assert "gemma-rmsnorm is failed" in log
