"""Streams and events that execute nothing and remember everything: which stream waited for which, in order.

All work of a simulation is done in program order, so no wait is ever needed. What a test wants to know is whether
sglang forked work to another stream and joined it again; `log` has it.
"""

from __future__ import annotations

import itertools
import threading

import torch

#: (operation, stream id, other stream id or event id), oldest first, of this process. 0 is the default stream.
log: list[tuple[str, int, int]] = []

_ids = itertools.count()


class Stream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, device: object = None, priority: int = 0, **_: object) -> None:
        self.id = next(_ids)
        self.cuda_stream = self.stream_id = self.id
        self.priority = priority
        self.device = torch.device("cpu")

    def wait_stream(self, stream: Stream) -> None:
        log.append(("wait_stream", self.id, stream.id))

    def wait_event(self, event: Event) -> None:
        log.append(("wait_event", self.id, event.id))

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        log.append(("synchronize", self.id, self.id))

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        _local.stack.append(self)
        log.append(("enter", self.id, self.id))
        return self

    def __exit__(self, *error: object) -> None:
        _local.stack.pop()
        log.append(("exit", self.id, self.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<simulated stream {self.id}>"


class Event:
    """Stands for `torch.cuda.Event`. All time between two of them is 0 ms."""

    def __init__(self, *_: object, **__: object) -> None:
        self.id = next(_ids)

    def record(self, stream: Stream | None = None) -> None:
        log.append(("record", (stream or current()).id, self.id))

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current()).wait_event(self)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: Event) -> float:
        return 0.0


_default = Stream()


class _Local(threading.local):
    """The streams each thread has entered, innermost last."""

    def __init__(self) -> None:
        self.stack = [_default]


_local = _Local()


def current(device: object = None) -> Stream:
    """The stream this thread is in."""
    return _local.stack[-1]


def set_current(stream: Stream) -> None:
    """Change the stream this thread is in, for good."""
    _local.stack[-1] = stream


class StreamContext:
    """Stands for `torch.cuda.stream`. Can be entered again and again: sglang keeps one per scheduler
    (managers/scheduler.py forward_stream_ctx). None stands for "no change"."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.__exit__(*error)


def replacements() -> dict[str, object]:
    """What takes the place of which attribute of `torch.cuda`."""
    return {
        "Stream": Stream,
        "Event": Event,
        "stream": StreamContext,
        "current_stream": current,
        "default_stream": lambda device=None: _default,
        "set_stream": set_current,
    }
