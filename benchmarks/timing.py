"""How long a call takes the GPU, by replays of a graph that holds many of it.

The host's time to launch is not in it, as it is not in a served model's decode. Replays are queued one behind another,
so that the GPU never waits for the host between two of them, and each is timed by the events around it.

*Warm*, the default: every call finds its inputs where the call before left them, in the L2 cache if they fit, as a
layer finds what the layer before has just written. *Cold*: before every call a buffer of twice the cache is
overwritten, and what that alone takes is subtracted.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch

from benchmarks.results import Timing

_REPLAYS = 25
_GRAPH_MICROSECONDS = 1500.0
_MOST_CALLS = 400


class GraphTimer:
    """Times calls on the current GPU. `cold` empties the L2 cache before each."""

    def __init__(self, *, cold: bool = False) -> None:
        self._flushed: torch.Tensor | None = None
        self._flush = 0.0
        if cold:
            size = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
            self._flushed = torch.empty(size, dtype=torch.uint8, device="cuda")
            self._flush = statistics.median(self._samples(lambda: None))

    def __call__(self, call: Callable[[], object]) -> Timing:
        """Runs `call` a few times on a side stream, then captures it. What it allocates is freed with the graph."""
        return summary([sample - self._flush for sample in self._samples(call)])

    def _samples(self, call: Callable[[], object]) -> list[float]:
        torch.cuda.synchronize()
        with torch.cuda.stream(side_stream()):
            self._once(call)
            estimate = statistics.median(self._replayed(call, calls=5, replays=3))
            return self._replayed(call, calls_of_a_graph(estimate), _REPLAYS)

    def _replayed(self, call: Callable[[], object], calls: int, replays: int) -> list[float]:
        """Microseconds of a call in each replay of a graph that holds so many."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                self._once(call)
        # One more replay than is timed: while it runs, the host queues the others.
        events = [_event() for _ in range(replays + 1)]
        for event in events:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e3 / calls for before, after in itertools.pairwise(events)]

    def _once(self, call: Callable[[], object]) -> None:
        if self._flushed is not None:
            self._flushed.zero_()
        call()


def side_stream() -> torch.cuda.Stream:
    """A stream of its own: a graph is not captured on the default one."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def calls_of_a_graph(microseconds: float) -> int:
    """How many calls of about this length make a graph long enough that its own launch does not show."""
    return max(1, min(_MOST_CALLS, round(_GRAPH_MICROSECONDS / max(microseconds, 1e-3))))


def summary(samples: list[float]) -> Timing:
    """At least two samples."""
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(statistics.median(samples), deciles[0], deciles[-1])
