"""Drives a real Chromium through its DevTools protocol, over the pipe that `--remote-debugging-pipe` gives it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,1100",
)  # fmt: skip
_PATIENCE_SECONDS = 30.0


class Chromium:
    """One page. `requests` are the addresses it asked for, `complaints` what its console and the browser said."""

    def __init__(self, profile: Path, *flags: str) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._unread = b""
        self._answers: dict[int, Any] = {}
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()
        # It reads commands from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        command = [*_FLAGS, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, str(CHROMIUM), *command],
            pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        self._session = ""
        (page,) = [one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def go(self, url: str) -> None:
        assert "errorText" not in (done := self._call("Page.navigate", url=url)), done

    def dark(self) -> None:
        """As somebody sees it whose desktop is dark."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def evaluate(self, expression: str) -> Any:
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def text(self) -> str:
        """What a reader sees."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def until(self, holds: Callable[[str], bool]) -> str:
        """What the page shows as soon as that `holds`; fails where it never does."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not holds(text := self.text()):
            assert time.monotonic() < deadline, f"the page still shows:\n{text}\n{self.complaints}"
            time.sleep(0.1)
        return text

    def screenshot(self, path: Path) -> None:
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **parameters: object) -> Any:
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while number not in self._answers:
            self._hear(deadline)
        answer = self._answers.pop(number)
        assert "error" not in answer, answer
        return answer["result"]

    def _hear(self, deadline: float) -> None:
        ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
        assert ready, "Chromium does not answer"
        chunk = os.read(self._read, 1 << 16)
        assert chunk, f"Chromium ended with status {self._process.poll()}"
        *messages, self._unread = (self._unread + chunk).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(message["params"]))
