"""One line per long task: what it is, how long it usually takes, how long it took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_FRAMES = "|/-\\"
#: A log that stays silent longer than this looks hung to the person (or the CI job) that reads it.
_HEARTBEAT_SECONDS = 30.0


def elapsed_text(seconds: float) -> str:
    """``0.3 s``, ``42 s`` or ``2 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


@contextmanager
def task(title: str, *, hint: str = "", stream: TextIO | None = None) -> Iterator[None]:
    """Announce ``title``, keep the reader informed while the body runs, then print how long it took.

    On a terminal the line is redrawn with a spinner; anywhere else it is printed once, then a heartbeat now and then.
    """
    out = sys.stdout if stream is None else stream
    on_terminal = out.isatty()
    label = f"{title} ({hint})" if hint else title
    started = time.monotonic()
    finished = threading.Event()

    def redraw() -> None:
        frame = 0
        while not finished.wait(0.2):
            out.write(f"\r{_FRAMES[frame % len(_FRAMES)]} {label} {elapsed_text(time.monotonic() - started)} ")
            out.flush()
            frame += 1

    def heartbeat() -> None:
        while not finished.wait(_HEARTBEAT_SECONDS):
            print(f"    still at it after {elapsed_text(time.monotonic() - started)}", file=out, flush=True)

    if not on_terminal:
        print(f"- {label} ...", file=out, flush=True)
    ticker = threading.Thread(target=redraw if on_terminal else heartbeat, daemon=True)
    ticker.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        finished.set()
        ticker.join()
        after = elapsed_text(time.monotonic() - started)
        clear = "\r\033[K" if on_terminal else ""
        print(
            f"{clear}- {title}: {outcome} in {after}" if on_terminal else f"    {outcome} in {after}",
            file=out,
            flush=True,
        )
