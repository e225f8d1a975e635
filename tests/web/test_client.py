"""`amd-sglang patches status --url`: what a server answers, and a sentence for whatever else happens."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from overlay.commands import main
from overlay.web import client
from overlay.web.client import NoStatusError, ask
from tests.web.app import document, patch, serving, write

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server that is well, and a scheduler of its that is not."""
    write(tmp_path, document("scheduler", patch("q"), pid=2**22 + 1, started=7, ranks={"tp": 1}))
    with serving(tmp_path, document("http-server", patch("p"))) as address:
        yield address


@contextmanager
def answering(body: bytes = b"", code: int = 200, **headers: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that always answers the same, its address, and the headers of every request it got."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **dict(self.headers)})
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def status(*arguments: str, **environ: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["patches", "status", *arguments], env=environ)
    return done.exit_code, done.output


def test_the_table_says_first_what_is_wrong(url: str) -> None:
    code, text = status("--url", url)
    lines = [line.split() for line in text.splitlines()]
    assert code == 0 and lines[0][1:] == ["NOT", "HEALTHY"]
    assert lines[1] == ["scheduler", "tp1", "(pid", f"{2**22 + 1})", "has", "ended"]
    assert [line[1] for line in lines if "ended" in line[2:5] or "ready" in line[2:5]] == ["scheduler", "http-server"]


def test_the_json_is_what_the_server_answered(url: str) -> None:
    code, text = status("--url", url, "--json")
    assert code == 0 and json.loads(text) == ask(url)
    assert [row["role"] for row in json.loads(text)["processes"]] == ["scheduler", "http-server"]


@pytest.mark.parametrize("form", ["{0}/", "http://{0}", "{0}"])
def test_an_address_may_be_short(url: str, form: str) -> None:
    assert ask(form.format(url.removeprefix("http://")))["schema"] == 1


def test_a_server_below_a_path_is_asked_there() -> None:
    with answering(code=404) as (url, seen), pytest.raises(NoStatusError):
        ask(f"{url}/below/")
    assert [one["path"] for one in seen] == ["/below/overlay/status"]


def test_the_key_is_taken_from_the_environment_and_sent() -> None:
    with answering(code=401) as (url, seen):
        code, text = status("--url", url, AMD_SGLANG_API_KEY="sesame")
        assert (code, seen[0]["Authorization"]) == (2, "Bearer sesame")
        assert "does not take this key (401). Set AMD_SGLANG_API_KEY to the key" in text and "sesame" not in text
        code, text = status("--url", url, AMD_SGLANG_API_KEY="")
        assert code == 2 and "wants the server's API key (401). Set AMD_SGLANG_API_KEY" in text
        assert "Authorization" not in seen[1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (403, "Set AMD_SGLANG_API_KEY"),
        (404, r"runs without the overlay\. Start it with `amd-sglang launch`"),
        (502, r"answers with status 502\. Its log may say why"),
    ],
)
def test_a_refusal_says_what_to_do(code: int, message: str) -> None:
    with answering(code=code) as (url, _), pytest.raises(NoStatusError, match=message):
        ask(url)


def test_the_key_never_follows_a_redirect() -> None:
    with answering(b"{}") as (elsewhere, seen), answering(code=307, Location=elsewhere) as (url, _):
        with pytest.raises(NoStatusError, match=r"sends elsewhere \(307\), where the key does not follow"):
            ask(url, "sesame")
        assert seen == []


@pytest.mark.parametrize("address", ["", "http://", "ftp://host", "http://host:port", "http://[::1", "host:0"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(NoStatusError, match=r"is not the address of a server\. Give it as http://host:port"):
        ask(address)


def test_a_refused_connection_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NoStatusError, match=r"does not answer: .*Connection refused.* Is the server up"):
            ask(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TIMEOUT_SECONDS", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(NoStatusError, match="does not answer: timed out"):
        ask(f"127.0.0.1:{silent.getsockname()[1]}")


def test_something_that_is_no_http_is_said() -> None:
    def speak() -> None:
        connection, _ = other.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail\r\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(NoStatusError, match="does not answer: 220 mail"):
            ask(f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()


ROW = {**document("scheduler", patch("p")), "run": "r", "alive": True}


@pytest.mark.parametrize(
    "body",
    [
        "", "<html>", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "processes": [], "reasons": 1}',
        *(
            json.dumps({"schema": 1, "reasons": [], "processes": [row]})
            for row in (
                1, {}, {"error": "e"}, {**ROW, "alive": 1}, {**ROW, "run": None}, {**ROW, "ranks": 3},
                {**ROW, "patches": [patch("p", "new")]}, {**ROW, "patches": [patch("p", worst_error="much")]},
            )
        ),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_an_answer_that_is_no_status_is_said(body: str) -> None:
    with answering(body.encode()) as (url, _), pytest.raises(NoStatusError, match="something else than a status"):
        ask(url)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_BYTES", 1000)
    with answering(b" " * 2000) as (url, _), pytest.raises(NoStatusError, match="more than 1000 bytes"):
        ask(url)


def test_a_server_cannot_command_the_terminal() -> None:
    row = {**ROW, "patches": [patch("p", reason=ESCAPE)], "role": ESCAPE}
    body = {"schema": 1, "healthy": False, "host": ESCAPE, "reasons": [ESCAPE], "note": ESCAPE, "processes": [row]}
    with answering(json.dumps(body).encode()) as (url, _):
        code, text = status("--url", url)
    assert code == 0 and "?]0;owned?" in text and not set(text) & set(ESCAPE[:1] + ESCAPE[-1:])


def test_this_machine_is_not_behind_the_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(url)["schema"] == 1
    with answering(b"") as (proxy, seen):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(NoStatusError):
            ask("http://far.example:30000")
        assert [one["path"] for one in seen] == ["http://far.example:30000/overlay/status"]
