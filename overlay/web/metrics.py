"""The patches as Prometheus metrics, beside sglang's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from overlay.model import State
from overlay.say import say
from overlay.web.document import Row, broken, ranks, replaced, troubles
from overlay.web.snapshot import Snapshot

_LABELS = ("patch", "role", "rank")
_COUNTERS = {
    "calls": "Calls that the kernel of a patch served.",
    "fallbacks": "Calls meant for the kernel of a patch that it does not take, and sglang's own code served.",
    "failures": "Times that the kernel of a patch failed, after which sglang's own code serves.",
    "shadowed": "Calls that ran both ways, to compare.",
}


class Families(Collector):
    """One reading, as Prometheus has it. Several processes of one role and rank are one series: the worst state of
    theirs, and the sum of their counters."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "amd_sglang_healthy",
            "1 where every process that served is alive and no patch is broken in it, else 0.",
            value=float(not troubles(self._rows)),
        )
        yield self._family(
            GaugeMetricFamily(
                "amd_sglang_patch_state",
                "1: in force. 0: not in force by decision. -1: broken, or the process has ended.",
                labels=_LABELS,
            ),
            _state,
            min,
        )
        for kind, text in _COUNTERS.items():
            family = CounterMetricFamily(f"amd_sglang_patch_{kind}", text, labels=_LABELS)
            yield self._family(family, _counter(kind), lambda one, other: one + other)

    def _family(
        self,
        family: Any,
        value: Callable[[Row, Any], float | None],
        join: Callable[[float, float], float],
    ) -> Metric:
        series: dict[tuple[str, str, str], float] = {}
        for row in self._rows:
            if "error" in row or not (row["alive"] or (row["ready"] and not replaced(row, self._rows))):
                continue  # what never served, or was started again, is no loss
            for patch in row["patches"]:
                labels, seen = (patch["id"], row["role"], ranks(row)), value(row, patch)
                if seen is not None:
                    series[labels] = join(series[labels], seen) if labels in series else seen
        for labels, number in series.items():
            family.add_metric(labels, number)
        found: Metric = family
        return found


def _state(row: Row, patch: Any) -> float:
    if not row["alive"] or broken(patch):
        return -1.0
    return 1.0 if patch["state"] == State.APPLIED.value else 0.0


def _counter(kind: str) -> Callable[[Row, Any], float | None]:
    def read(_row: Row, patch: Any) -> float | None:
        count = (patch.get("counters") or {}).get(kind)
        return None if count is None else float(count)

    return read


def mount(snapshot: Snapshot) -> Mount:
    """`/metrics` with what sglang's own mount of that name answers (utils/common.py, add_prometheus_middleware), and
    the patches. It has to stand before that one."""
    route = Mount("/metrics", _app(snapshot))
    # As upstream: without it Starlette redirects /metrics to /metrics/, which not every scraper follows.
    route.path_regex = re.compile("^/metrics(?P<path>.*)$")
    return route


def _app(snapshot: Snapshot) -> ASGIApp:
    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # so in prometheus_client
        try:
            registry.register(Families((await snapshot.view()).rows))
        except Exception as error:  # noqa: BLE001 - whatever ails the status, sglang's own metrics must not suffer
            say(f"no metrics of the patches: {type(error).__name__}: {error}")
        await make_asgi_app(registry=registry)(scope, receive, send)

    return metrics
