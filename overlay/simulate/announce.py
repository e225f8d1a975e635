"""Says so: nobody may mistake a simulated server for a GPU."""

from __future__ import annotations

import logging
import sys
from typing import Any


def mark_log_lines(marker: str) -> None:
    """Put `marker` in front of every line any handler of `logging` writes, whatever its format.

    At the handler and not at the record: uvicorn's access log never formats a record's message, and sglang replaces
    formats and handlers (utils/log_utils.py, entrypoints/http_server.py) after this has run.
    """
    plain = logging.Handler.format

    def format(self: logging.Handler, record: logging.LogRecord) -> Any:
        line = plain(self, record)
        # A queue handler formats once, and the handler at the other end formats that line again.
        return line if not isinstance(line, str) or line.startswith(marker) else f"{marker} {line}"

    logging.Handler.format = format  # type: ignore[method-assign]


def print_banner(banner: str) -> None:
    """Once per process that loads torch, on stderr."""
    print(f"[amd-sglang] {banner}", file=sys.stderr, flush=True)
