"""A server process to talk to: started in a session of its own, asked over HTTP, stopped with nothing left behind.

Standard library only. The demo and the tests use it with the real sglang; it knows nothing of the overlay.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from demo.layout import ROOT
from demo.processes import Process, in_session, kill

HOST = "127.0.0.1"
#: sglang opens further ports at fixed offsets above its own (up to +10000), so stay well below 65535.
_PORTS = range(21000, 29000)
_POLL_SECONDS = 0.2


class ServerError(Exception):
    """The server did not start, answer or stop as it should; the message holds the end of its log."""


def free_port() -> int:
    """A port on the loopback interface that nothing listens on now."""
    for port in random.SystemRandom().sample(_PORTS, 50):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerError(f"no free port among 50 tried between {_PORTS.start} and {_PORTS.stop - 1} on {HOST}")


class Server:
    """A context manager around one server process.

    ``command`` may use ``{port}``, which becomes the port chosen for this server. ``environment`` is added to this
    process's own; ``key`` is the API key that every request carries. Output goes to ``log``. Leaving the context ends
    every process of the server's session, whatever happened inside.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        key: str | None = None,
    ) -> None:
        self.port = free_port()
        self.log = log
        self.command = [str(word).replace("{port}", str(self.port)) for word in command]
        self._environment = {**os.environ, **(environment or {})}
        self._cwd = cwd
        self._authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """``http://host:port``, without a trailing slash."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The id of the server's first process, which is also the id of its session."""
        return self._started().pid

    def start(self) -> None:
        """Start the process. Raises ServerError when the command cannot be run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self._cwd,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"cannot run {self.command[0]}: {error.strerror}") from error

    def wait_ready(self, timeout: float = 240, path: str = "/health") -> None:
        """Return once ``path`` answers 200; raise ServerError if the server ends or ``timeout`` seconds pass."""
        process, deadline = self._started(), time.monotonic() + timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(
                    self._with_log(f"the server ended with status {process.returncode} before it was ready")
                )
            try:
                if self._request("GET", path, None, timeout=5).status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass  # not listening yet
            time.sleep(_POLL_SECONDS)
        raise ServerError(self._with_log(f"the server was not ready after {timeout:.0f} s"))

    def get(self, path: str) -> Any:
        """The JSON answer to a GET. Raises ServerError on any other status than 200."""
        return json.loads(self._checked("GET", path, None).read())

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """The JSON answer to a POST of ``body``. Raises ServerError on any other status than 200."""
        return json.loads(self._checked("POST", path, body).read())

    def generate(self, prompt: str | Sequence[int], count: int, **sampling: object) -> Any:
        """``/generate`` with greedy sampling: the answer holds ``text``, ``output_ids`` and ``meta_info``."""
        parameters = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True, **sampling}
        source = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
        return self.post("/generate", {**source, "sampling_params": parameters})

    def completions(self, prompt: str, count: int, **options: object) -> Any:
        """OpenAI's ``/v1/completions`` with greedy sampling; the text is in ``["choices"][0]["text"]``."""
        return self.post("/v1/completions", self._completion_body(prompt, count, **options))

    def stream(self, prompt: str, count: int, **options: object) -> Iterator[str]:
        """``/v1/completions`` as server-sent events: yield each piece of text as it arrives."""
        response = self._checked(
            "POST", "/v1/completions", self._completion_body(prompt, count, stream=True, **options)
        )
        for line in response:
            field, _, data = line.decode().strip().partition(": ")
            if field != "data":
                continue
            if data == "[DONE]":
                return
            yield from (choice["text"] for choice in json.loads(data)["choices"])
        raise ServerError(self._with_log("the stream ended without its closing [DONE]"))

    def is_running(self) -> bool:
        """Whether the server's first process is still there."""
        return self._started().poll() is None

    def processes(self) -> list[Process]:
        """The server's live processes, itself first."""
        return in_session(self.pid)

    def children(self) -> list[Process]:
        """The live processes the server started, directly or not."""
        return [process for process in self.processes() if process.pid != self.pid]

    def stop(self, timeout: float = 60) -> int:
        """Ask the server to end (SIGTERM), wait for all its processes, and return its exit status (negative: a signal).

        Raises ServerError, after ending them all, when some process is still there after ``timeout`` seconds.
        """
        process, deadline = self._started(), time.monotonic() + timeout
        kill(process.pid, signal.SIGTERM)
        while process.poll() is None or in_session(process.pid):
            if time.monotonic() > deadline:
                left = ", ".join(f"{one.pid} ({one.name[:60]})" for one in in_session(process.pid))
                self.kill()
                raise ServerError(self._with_log(f"still running {timeout:.0f} s after SIGTERM, now killed: {left}"))
            time.sleep(_POLL_SECONDS)
        return process.returncode

    def kill(self) -> None:
        """End every process of the server's session at once; harmless when none is left."""
        if self._process is None:
            return
        # Again until none is left: a process may start another one while this loop runs.
        while left := in_session(self._process.pid):
            for process in left:
                kill(process.pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines the server wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @staticmethod
    def _completion_body(prompt: str, count: int, **options: object) -> dict[str, object]:
        return {
            "model": "default",
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            **options,
        }

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server was not started; use it as a context manager")
        return self._process

    def _with_log(self, message: str) -> str:
        return f"{message}\nCommand: {' '.join(self.command)}\nEnd of {self.log}:\n{self.log_tail()}"

    def _request(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout: float
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        payload = None if body is None else json.dumps(body).encode()
        # The response keeps the socket open until it has been read.
        headers = {"Content-Type": "application/json", "Connection": "close", **self._authorization}
        connection.request(method, path, payload, headers)
        return connection.getresponse()

    def _checked(self, method: str, path: str, body: Mapping[str, object] | None) -> http.client.HTTPResponse:
        try:
            response = self._request(method, path, body, timeout=180)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(self._with_log(f"{method} {path} failed: {error!r}")) from error
        if response.status != 200:
            answer = response.read().decode(errors="replace")[:500]
            raise ServerError(self._with_log(f"{method} {path} answered {response.status}: {answer}"))
        return response
