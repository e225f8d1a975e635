"""Where a process of the server speaks for the overlay."""

import sys


def say(message: str) -> None:
    """One line on standard error: logging is not set up yet when the overlay starts, and sglang resets it later."""
    print(f"[amd-sglang] {message}", file=sys.stderr, flush=True)
