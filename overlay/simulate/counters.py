"""What ran, by name. Every fake, every interpreted kernel and every operator dispatch ends up here."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable

_lock = threading.Lock()
_counts: Counter[str] = Counter()
_listeners: list[Callable[[], None]] = []


def count(name: str) -> None:
    """One more call of `name`."""
    with _lock:
        _counts[name] += 1
    for notify in _listeners:
        notify()


def snapshot() -> dict[str, int]:
    """The counts so far, by name."""
    with _lock:
        return dict(sorted(_counts.items()))


def on_count(notify: Callable[[], None]) -> None:
    """Call `notify` after every count. It runs in the counting thread and must be quick."""
    _listeners.append(notify)


def _forget() -> None:
    """A forked child has called nothing yet, and must not wait for a lock that a thread of its parent held."""
    global _lock
    _lock = threading.Lock()
    _counts.clear()


os.register_at_fork(after_in_child=_forget)
