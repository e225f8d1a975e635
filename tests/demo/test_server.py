"""Starting, asking and stopping a server, against a tiny one that can be told to misbehave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.processes import in_session
from demo.server import HOST, Server, ServerError, free_port

TINY = Path(__file__).with_name("tiny_server.py")


def tiny(tmp_path: Path, *behaviour: str) -> Server:
    return Server([sys.executable, TINY, "{port}", *behaviour], log=tmp_path / "logs" / "server.log")


def test_waits_until_healthy_then_answers(tmp_path: Path) -> None:
    with tiny(tmp_path) as server:
        server.wait_ready(timeout=20)
        assert "handled /health" in server.log_tail()
        assert server.completions("abc", 3)["choices"][0]["text"] == "ABC"
        assert list(server.stream("abc", 3)) == ["he", "llo"]


def test_generate_is_greedy_and_takes_text_or_ids(tmp_path: Path) -> None:
    with tiny(tmp_path) as server:
        server.wait_ready(timeout=20)
        by_text, by_ids = server.generate("hi", 5)["echo"], server.generate((1, 2), 5, stop=["x"])["echo"]
    sampling = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    assert by_text == {"text": "hi", "sampling_params": sampling}
    assert by_ids == {"input_ids": [1, 2], "sampling_params": {**sampling, "stop": ["x"]}}


def test_server_that_ends_early_is_reported_with_status_and_log(tmp_path: Path) -> None:
    with tiny(tmp_path, "exit") as server, pytest.raises(ServerError) as caught:
        server.wait_ready(timeout=20)
    assert "ended with status 1" in str(caught.value)
    assert "the model does not exist" in str(caught.value)


def test_server_that_is_never_ready_times_out(tmp_path: Path) -> None:
    with tiny(tmp_path, "never-ready") as server, pytest.raises(ServerError, match="not ready after 2 s"):
        server.wait_ready(timeout=2)


def test_error_answer_is_reported_with_its_body(tmp_path: Path) -> None:
    with tiny(tmp_path, "fail") as server:
        server.wait_ready(timeout=20)
        with pytest.raises(ServerError, match=r"/v1/completions answered 500: .*out of pages"):
            server.completions("abc", 3)


def test_stream_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    with tiny(tmp_path, "cut-stream") as server:
        server.wait_ready(timeout=20)
        with pytest.raises(ServerError, match="without its closing"):
            list(server.stream("abc", 3))


def test_stop_returns_the_status_and_all_children_are_gone(tmp_path: Path) -> None:
    with tiny(tmp_path, "children") as server:
        server.wait_ready(timeout=20)
        assert len(server.children()) == 2
        assert server.processes()[0].pid == server.pid
        assert server.stop(timeout=20) == 7
        assert server.processes() == []
        assert not server.is_running()


def test_stop_waits_for_a_child_that_outlives_the_server(tmp_path: Path) -> None:
    with tiny(tmp_path, "lingering") as server:
        server.wait_ready(timeout=20)
        assert len(server.children()) == 1
        assert server.stop(timeout=20) == 7
        assert server.children() == []


def test_stop_of_a_deaf_server_kills_it_and_says_so(tmp_path: Path) -> None:
    with tiny(tmp_path, "deaf") as server:
        server.wait_ready(timeout=20)
        with pytest.raises(ServerError, match="still running 1 s after SIGTERM"):
            server.stop(timeout=1)
        assert server.processes() == []


def test_leaving_the_context_by_an_error_ends_orphans_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), tiny(tmp_path, "orphan", "children") as server:
        server.wait_ready(timeout=20)
        session = server.pid
        assert len(server.children()) == 3
        raise RuntimeError("boom")
    assert in_session(session) == []


def test_interrupt_of_the_caller_ends_the_server(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; from pathlib import Path; from demo.server import Server\n"
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"command = [sys.executable, {str(TINY)!r}, '{{port}}', 'children']\n"
        f"with Server(command, log=Path({str(tmp_path / 'log')!r})) as s:\n"
        "    s.wait_ready(20); print(s.pid, flush=True); time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root
    ) as caller:
        assert caller.stdout is not None
        session = int(caller.stdout.readline())
        assert len(in_session(session)) == 3
        caller.send_signal(signal.SIGINT)
        caller.wait(20)
    assert in_session(session) == []


def test_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot run /no/such/program: No such file"):
        Server(["/no/such/program"], log=tmp_path / "log").start()


def test_environment_is_added_to_the_callers(tmp_path: Path) -> None:
    program = "import os; print(os.environ['DEMO_EXTRA'], os.environ['PATH'])"
    with Server([sys.executable, "-c", program], log=tmp_path / "log", environment={"DEMO_EXTRA": "here"}) as server:
        deadline = time.monotonic() + 20
        while server.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert server.log_tail().strip() == f"here {os.environ['PATH']}"


def test_free_port_skips_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        used = taken.getsockname()[1]
        free = free_port()

        def sample(_self: object, _population: object, _count: int) -> list[int]:
            return [used, free]

        monkeypatch.setattr("random.SystemRandom.sample", sample)
        assert free_port() == free
