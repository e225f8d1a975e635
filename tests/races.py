"""Finds data races between streams: two accesses to one memory, one of them a write, that nothing orders.

The simulated ROCm runs everything in program order, whichever stream it is asked for, and logs every fork and join
(`overlay.simulate.torch_streams`). From that log this keeps a vector clock per stream: how much of every other stream
has certainly ended before what is enqueued next. Every operation that reaches PyTorch's dispatcher is an access to the
memory of its arguments and results, as its schema declares it. An access that another stream's conflicting access does
not precede in every schedule is a race, whatever the simulation computed. Of two streams that race for one storage the
first race is reported: the rest follow from it.

An operation counts as a whole: sglang's fused experts are one custom operator, declared to mutate its input or not.
What this does not see: kernels that are launched outside any operator, and memory that the caching allocator hands to
another stream too early.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from overlay.simulate import torch_streams

#: How many accesses of every stream, by its id, have ended for certain.
Clock = dict[int, int]


@dataclass(frozen=True)
class Access:
    """One operation touching bytes `start` to `end` of a storage, as the `tick`-th access of its stream."""

    operation: str
    stream: int
    tick: int
    write: bool
    start: int
    end: int

    def conflicts(self, other: Access) -> bool:
        return (self.write or other.write) and self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Race:
    """Two accesses in program order, of which the hardware may take either first."""

    first: Access
    second: Access

    def __str__(self) -> str:
        verbs = ["writes" if access.write else "reads" for access in (self.first, self.second)]
        return (
            f"{self.first.operation} {verbs[0]} on stream {self.first.stream} while "
            f"{self.second.operation} {verbs[1]} on stream {self.second.stream}"
        )


class RaceDetector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with RaceDetector() as detector: ...` watches one thread; `detector.races` has what it found, oldest first.

    The streams and events used inside must be those of `overlay.simulate.torch_streams`; those that exist before are
    idle when it begins.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.races: list[Race] = []
        self._clocks: defaultdict[int, Clock] = defaultdict(Clock)
        self._events: dict[int, Clock] = {}
        self._ended: Clock = {}
        self._accesses: defaultdict[int, list[Access]] = defaultdict(list)
        self._raced: set[tuple[int, ...]] = set()
        self._kept: list[torch.UntypedStorage] = []  # a freed storage's address would be given to another
        self._read = len(torch_streams.log)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._synchronize()
        stream = torch_streams.current().id
        result = func(*args, **(kwargs or {}))
        for tensor, write in _touched(func._schema, args, kwargs or {}, result):
            self._access(str(func), stream, tensor, write)
        return result

    def _synchronize(self) -> None:
        """Take in what the streams have waited for since the last operation."""
        for what, subject, other in itertools.islice(torch_streams.log, self._read, None):
            if what == "wait_stream":
                self._join(subject, self._now(other))
            elif what == "record":
                self._events[other] = self._now(subject)
            elif what == "wait_event":
                self._join(subject, self._events.get(other, {}))
            elif what == "synchronize":  # the host waits, and whatever it enqueues afterwards comes after
                self._ended = _later(self._ended, self._now(subject))
        self._read = len(torch_streams.log)

    def _now(self, stream: int) -> Clock:
        return _later(self._clocks[stream], self._ended)

    def _join(self, stream: int, other: Clock) -> None:
        self._clocks[stream] = _later(self._clocks[stream], other)

    def _access(self, operation: str, stream: int, tensor: Tensor, write: bool) -> None:
        start, end = _extent(tensor)
        if start == end:
            return
        clock = self._clocks[stream] = self._now(stream)
        clock[stream] = clock.get(stream, 0) + 1
        access = Access(operation, stream, clock[stream], write, start, end)
        storage = tensor.untyped_storage()
        earlier = self._accesses[storage._cdata]
        if not earlier:
            self._kept.append(storage)
        for other in earlier:
            pair = (storage._cdata, *sorted((stream, other.stream)))
            if clock.get(other.stream, 0) < other.tick and access.conflicts(other) and pair not in self._raced:
                self._raced.add(pair)
                self.races.append(Race(other, access))
        earlier.append(access)


def _later(one: Clock, other: Clock) -> Clock:
    return {stream: max(one.get(stream, 0), other.get(stream, 0)) for stream in one.keys() | other.keys()}


def _touched(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Iterator[tuple[Tensor, bool]]:
    """The tensors an operation reads (False) or writes (True). A view touches nothing."""
    aliases = [value.alias_info for value in schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return
    given = {**{argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}, **kwargs}
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    for name, value in given.items():
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield leaf, name in written
    results = result if isinstance(result, tuple | list) else (result,)
    for alias, value in zip(aliases, results, strict=False):
        for leaf in tree_leaves(value):
            if alias is None and isinstance(leaf, Tensor):
                yield leaf, True


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last that a tensor can reach in its storage, gaps between strides included."""
    if tensor.numel() == 0:
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + (int(reach) + 1) * tensor.element_size()
