"""``python -m demo``: serve a tiny model with the real sglang under the overlay, ask it, and check every answer.

No GPU is needed: the overlay simulates a ROCm one. ``--serve`` leaves the server up in the foreground instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from demo.layout import BASE_RELEASE, CACHE, CHECKPOINTS, LOGS, ROOT, VENV
from demo.progress import task
from demo.server import Server, ServerError

AMD_SGLANG = VENV / "bin" / "amd-sglang"
CHECKPOINT = CHECKPOINTS / "gemma2"
RUNS = CACHE / "runs"
PROMPTS = ("The quick brown fox", "A compute unit runs")
TOKENS = 12

#: What the real server needs to run in the simulation, beyond its defaults.
SERVE_ARGUMENTS = (
    "--attention-backend=triton",  # Triton has an interpreter; aiter's attention kernels exist for a GPU only
    "--triton-attention-num-kv-splits=1",  # one interpreted program per head instead of eight
    "--disable-cuda-graph",  # there is no graph to capture
    "--max-total-tokens=1024",  # else the cache is as large as the memory that the simulation reports
)


class DemoError(Exception):
    """Something the demo shows did not hold."""


def amd_sglang(*arguments: str) -> str:
    """Run the overlay's command line and return what it prints; raise DemoError when it fails."""
    environment = {**os.environ, "AMD_SGLANG_RUN_DIR": str(RUNS)}
    done = subprocess.run(
        [AMD_SGLANG, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if done.returncode:
        raise DemoError(
            f"amd-sglang {' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout.rstrip()


def expected_answers() -> list[dict[str, Any]]:
    """Write the checkpoint and return transformers' greedy answer to each prompt (see demo.checkpoint.expectation)."""
    command: list[str | Path] = [sys.executable, "-m", "demo.checkpoint", "--out", CHECKPOINT, "--expect", str(TOKENS)]
    command += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise DemoError(f"the checkpoint could not be made:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def make_server() -> Server:
    """The server of the demo, not started yet."""
    shutil.rmtree(RUNS, ignore_errors=True)
    launch: list[str | Path] = [AMD_SGLANG, "launch", "--simulate", "gfx942"]
    model: list[str | Path] = ["--model-path", CHECKPOINT, "--served-model-name=default", "--dtype=bfloat16"]
    place = ["--host=127.0.0.1", "--port={port}"]
    environment = {"AMD_SGLANG_RUN_DIR": str(RUNS)}
    return Server([*launch, *model, *place, *SERVE_ARGUMENTS], log=LOGS / "server.log", environment=environment)


def check(what: str, got: object, wanted: object) -> None:
    """Print the answer when it is the expected one, else raise DemoError with both."""
    if got != wanted:
        raise DemoError(f"{what} differs from transformers:\n  got      {got!r}\n  expected {wanted!r}")
    print(f"  {what:<30} {got!r}")


def ask(server: Server, expected: dict[str, Any]) -> None:
    """Ask one prompt through each interface; raise DemoError unless every answer is transformers' own."""
    prompt, tokens, text = expected["prompt"], expected["bfloat16"], expected["text"]
    print(f"\n{prompt!r}")
    check("/generate", server.generate(prompt, TOKENS)["output_ids"], tokens)
    check("/v1/completions", server.completions(prompt, TOKENS)["choices"][0]["text"], text)
    pieces = list(server.stream(prompt, TOKENS))
    check(f"/v1/completions in {len(pieces)} pieces", "".join(pieces), text)


def show_patches() -> None:
    """Print what every process says of itself; raise DemoError unless a scheduler applied a patch.

    The schedulers run the model. Other processes may never import what a patch is for.
    """
    print("\namd-sglang patches status:\n" + amd_sglang("patches", "status") + "\n")
    processes = json.loads(amd_sglang("patches", "status", "--json"))["processes"]
    schedulers = [process for process in processes if process["role"] == "scheduler"]
    applied = [patch["state"] == "applied" for process in schedulers for patch in process["patches"]]
    if not any(applied):
        raise DemoError(f"{len(schedulers)} schedulers report, and no patch is applied in them")


def stop(server: Server) -> None:
    """End the server as an operator would, and say that nothing is left."""
    before = server.children()
    with task("SIGTERM to the server", hint="10 s"):
        status = server.stop()
    # sglang finishes what it has, says so, and ends its own process tree with SIGKILL: -9 is its clean exit.
    if "Gracefully exiting" not in server.log_tail():
        raise DemoError(f"the server ended with status {status}, not gracefully; end of its log:\n{server.log_tail()}")
    print(f"the server drained and ended, and so did its {len(before)} child processes")


def demonstrate() -> None:
    """The whole demo. Raises DemoError or ServerError as soon as something does not hold."""
    with task("making a tiny Gemma 2 and asking transformers for its answers", hint="15 s"):
        answers = expected_answers()
    with make_server() as server:
        print(f"  {' '.join(server.command)}".replace(f"{ROOT}/", ""))
        with task(f"starting sglang {BASE_RELEASE} on a simulated MI300X", hint="20 to 40 s"):
            server.wait_ready()
        for expected in answers:
            ask(server, expected)
        print("\nEvery answer equals transformers' own greedy answer in bf16.")
        show_patches()
        stop(server)


def serve() -> None:
    """Serve in the foreground until Ctrl-C."""
    expected_answers()
    with make_server() as server:
        with task(f"starting sglang {BASE_RELEASE} on a simulated MI300X", hint="20 to 40 s"):
            server.wait_ready()
        body = json.dumps({"model": "default", "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0})
        print(f"log: {server.log}\ntry:")
        print(f"  curl {server.url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")
        print(f"  AMD_SGLANG_RUN_DIR={RUNS} {AMD_SGLANG} patches status\nCtrl-C stops it.", flush=True)
        try:
            while server.is_running():
                time.sleep(0.5)
        except KeyboardInterrupt:
            print()
            stop(server)
            return
        raise ServerError(f"the server ended by itself; end of {server.log}:\n{server.log_tail()}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End by way of the context managers, which end what was started."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--serve", action="store_true", help="leave the server up in the foreground")
    arguments = parser.parse_args(argv)
    # SIGINT as well: it arrives ignored when a script starts the demo in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        serve() if arguments.serve else demonstrate()
    except (DemoError, ServerError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the server was stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
