"""The real HTTP server of 0.5.9, started by `amd-sglang launch` on the command line of `sglang.launch_server`."""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import SERVE_ARGUMENTS
from demo.server import Server, ServerError
from overlay import status
from tests.engine.conftest import COUNT
from tests.engine.generate import PROMPTS

AMD_SGLANG = Path(sys.executable).with_name("amd-sglang")
OURS = "triton:patches.kernels.gemma_rmsnorm._gemma_rmsnorm_kernel"
pytestmark = pytest.mark.engine


def serve(checkpoint: Path, folder: Path, *extra: str, options: tuple[str, ...] = (), **environ: str) -> Server:
    place = ("--host", "127.0.0.1", "--port", "{port}")
    model = ("--model-path", str(checkpoint), "--served-model-name", "default", "--dtype", "bfloat16")
    return Server(
        [AMD_SGLANG, "launch", "--simulate", "gfx942", *options, *model, *place, *SERVE_ARGUMENTS, *extra],
        log=folder / "server.log",
        environment={"AMD_SGLANG_RUN_DIR": str(folder / "runs"), **environ},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(checkpoint: Path, folder: Path) -> Iterator[Server]:
    with serve(checkpoint, folder) as started:
        started.wait_ready()
        yield started


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


def test_every_process_reports_and_the_schedulers_prove_the_patch(checkpoint: Path, tmp_path: Path) -> None:
    with serve(checkpoint, tmp_path, "--dp-size", "2") as server:
        server.wait_ready()
        for _ in range(4):
            server.generate(PROMPTS[0], 1)
        time.sleep(1.5)  # the simulation writes its counters twice a second
        rows: list[Any] = [row for row in status.read_runs(tmp_path / "runs") if row["alive"]]
        assert {row["pid"] for row in rows} <= {process.pid for process in server.processes()}
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
    switches = {"AMD_SGLANG_GEMMA_RMSNORM_BACKEND": "aiter"}
    with serve(checkpoint, tmp_path, options=("--strict",), **switches) as server:
        with pytest.raises(ServerError, match=r"ended with status [^0]"):
            server.wait_ready(timeout=120)
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
