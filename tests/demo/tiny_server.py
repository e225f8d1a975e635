"""A server with sglang's routes and process tree, and nothing else: ``tiny_server.py PORT [behaviour]...``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BEHAVIOUR = set(sys.argv[2:])
STARTED = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = time.monotonic() - STARTED > 0.5 and "never-ready" not in BEHAVIOUR
        self._answer(200 if ready else 503, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "fail" in BEHAVIOUR:
            self._answer(500, {"error": "out of pages"})
        elif body.get("stream"):
            self._stream()
        elif self.path == "/generate":
            self._answer(200, {"echo": body})
        else:
            self._answer(200, {"choices": [{"text": body["prompt"].upper()}]})

    def log_message(self, format: str, *arguments: Any) -> None:
        print(f"handled {self.path}", flush=True)

    def _stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        for piece in ("he", "llo"):
            self.wfile.write(f"data: {json.dumps({'choices': [{'text': piece}]})}\n\n".encode())
        if "cut-stream" not in BEHAVIOUR:
            self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, status: int, document: object) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def leave(_number: int, _frame: object) -> None:
    if "lingering" in BEHAVIOUR:
        os._exit(7)
    for child in CHILDREN:
        child.kill()
        child.wait()
    os._exit(7)


if "exit" in BEHAVIOUR:
    sys.exit("the model does not exist")
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in BEHAVIOUR else leave)
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
CHILDREN = [subprocess.Popen(SLEEPER) for _ in range(2)] if "children" in BEHAVIOUR else []
if "lingering" in BEHAVIOUR:
    # A child that outlives the server for a while.
    WATCH = "import os, time\nwhile os.getppid() == %d: time.sleep(0.05)\ntime.sleep(1)"
    CHILDREN.append(subprocess.Popen([sys.executable, "-c", WATCH % os.getpid()]))
if "orphan" in BEHAVIOUR:
    # A grandchild whose parent has ended is nobody's child, and must end all the same.
    subprocess.run([sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEPER!r})"], check=True)
print("listening", flush=True)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
