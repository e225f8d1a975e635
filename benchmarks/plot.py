"""Results as an SVG: for each table, how often our time fits into that of every other implementation.

The vertical axis is logarithmic; 1 is ours, above it others are slower. Readable on a light and a dark page, and by the
shape of the marks without colour. The exact times are in the marks' titles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from benchmarks.results import CaseResult, GroupResult, Report, Result
from benchmarks.table import rates

_WIDTH, _LEFT, _RIGHT = 920, 58, 24
_PLOT = 210
_TITLE, _LEGEND_ROW, _AXES, _GAP = 34, 18, 22, 22
_CHARACTER = 6.7
_SLANT = math.radians(58)
"""Of the labels below a plot: the longest there are stay inside the picture on the left."""
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_MARKS = 4

_STYLE = """\
  <style>
    text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
    .page { fill: #ffffff; } .title { font-size: 14px; font-weight: 600; } .caption { fill: #59636e; }
    .grid { stroke: #d1d9e0; } .ours { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 5 3; }
    .line { fill: none; stroke-width: 1.5; opacity: 0.55; }
    .s0 { --c: #cf222e; } .s1 { --c: #0969da; } .s2 { --c: #1a7f37; } .s3 { --c: #8250df; }
    .s4 { --c: #bc4c00; } .s5 { --c: #0a7d91; } .s6 { --c: #bf3989; } .s7 { --c: #59636e; }
    .mark { fill: var(--c); stroke: #ffffff; } .line { stroke: var(--c); }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .page { fill: #0d1117; } .caption { fill: #9198a1; } .grid { stroke: #30363d; } .ours { stroke: #f0f6fc; }
      .mark { stroke: #0d1117; }
      .s0 { --c: #ff7b72; } .s1 { --c: #58a6ff; } .s2 { --c: #3fb950; } .s3 { --c: #bc8cff; }
      .s4 { --c: #f0883e; } .s5 { --c: #39c5cf; } .s6 { --c: #ff9bce; } .s7 { --c: #9198a1; }
    }
  </style>
"""


def picture(report: Report) -> str:
    """The whole document. Groups in which nothing but ours was timed are left out."""
    shown = [group for group in report.groups if len(group.implementations) > 1]
    y = 62.0
    body = [
        _text(16, 28, "Time of others / ours, by graph replay", "title"),
        _text(
            16, 46, f"{report.machine.gpu}, caches {report.cache}; {rates(report.machine)}; {report.date}", "caption"
        ),
    ]
    for group in shown:
        panel = _Panel(group, y)
        body += panel.drawn()
        y += panel.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" width="{_WIDTH}" height="{y:.0f}" '
        f'role="img" aria-label="Times of other implementations over ours">\n{_STYLE}'
        f'  <rect class="page" width="100%" height="100%" rx="8"/>\n{"".join(body)}</svg>\n'
    )


class _Point(NamedTuple):
    x: float
    y: float
    title: str


class _Panel:
    """One group, whose top edge is at `y`."""

    def __init__(self, group: GroupResult, y: float) -> None:
        self._group = group
        self._others = [name for name in group.implementations if name != group.cases[0].ours.implementation]
        self._y = y
        self._legend = _legend_rows(self._others)
        self._top = y + _TITLE + _LEGEND_ROW * len(self._legend)
        ratios = [_ratio(case, result) for case in group.cases for result in case.results]
        self._low, self._high = min(0.8, *ratios) / 1.1, max(2.0, *ratios) * 1.15
        longest = max(len(case.label) for case in group.cases)
        self._labels = 14 + longest * _CHARACTER * math.sin(_SLANT)

    @property
    def height(self) -> float:
        return self._top - self._y + _PLOT + self._labels + _AXES + _GAP

    def drawn(self) -> list[str]:
        return [
            _text(16, self._y + 16, self._group.title, "title"),
            *self._drawn_legend(),
            *self._drawn_axes(),
            *(part for number, name in enumerate(self._others) for part in self._drawn_series(number, name)),
        ]

    def _drawn_legend(self) -> list[str]:
        parts, number = [], 0
        for row, names in enumerate(self._legend):
            x, y = float(_LEFT), self._y + _TITLE + _LEGEND_ROW * row
            for name in names:
                parts += [_mark(x, y, number, name), _text(x + 9, y + 4, name)]
                x += _legend_width(name)
                number += 1
        return parts

    def _drawn_axes(self) -> list[str]:
        right, bottom = _WIDTH - _RIGHT, self._top + _PLOT
        parts = []
        for tick in _TICKS:
            if self._low <= tick <= self._high:
                y, kind = self._height_of(tick), "ours" if tick == 1 else "grid"
                parts.append(f'  <line class="{kind}" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>\n')
                parts.append(_text(_LEFT - 6, y + 4, "ours" if tick == 1 else f"{tick:g}x", extra=' text-anchor="end"'))
        for column, case in enumerate(self._group.cases):
            x, y = self._column(column), bottom + 14
            turned = f' text-anchor="end" transform="rotate(-{math.degrees(_SLANT):.0f} {x:.1f} {y:.1f})"'
            parts.append(_text(x, y, case.label, extra=turned))
        parts.append(_text(16, bottom + self._labels + _AXES, self._group.axes, "caption"))
        return parts

    def _drawn_series(self, number: int, name: str) -> list[str]:
        points = []
        for column, case in enumerate(self._group.cases):
            result = case.of(name)
            if result is not None:
                ratio = _ratio(case, result)
                title = (
                    f"{name} at {case.label}: {result.timing.median:.2f} us, "
                    f"ours {case.ours.timing.median:.2f} us, {ratio:.2f}x"
                )
                points.append(_Point(self._column(column), self._height_of(ratio), title))
        path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in points)
        line = f'  <polyline class="line s{number % 8}" points="{path}"/>\n'
        return [line, *(_mark(point.x, point.y, number, point.title) for point in points)]

    def _column(self, number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (number + 0.5) / len(self._group.cases)

    def _height_of(self, ratio: float) -> float:
        share = math.log(ratio / self._low) / math.log(self._high / self._low)
        return self._top + _PLOT * (1 - share)


def _ratio(case: CaseResult, result: Result) -> float:
    return result.timing.median / case.ours.timing.median


def _legend_rows(names: Sequence[str]) -> list[list[str]]:
    """Names in rows as wide as the plot."""
    rows: list[list[str]] = [[]]
    x = 0.0
    for name in names:
        if rows[-1] and x + _legend_width(name) > _WIDTH - _LEFT - _RIGHT:
            rows.append([])
            x = 0.0
        rows[-1].append(name)
        x += _legend_width(name)
    return rows


def _legend_width(name: str) -> float:
    return _CHARACTER * len(name) + 30


def _mark(x: float, y: float, number: int, title: str) -> str:
    """A disc, a square, a triangle or a diamond."""
    kind = f'class="mark s{number % 8}"'
    shapes = (
        f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        f'<rect {kind} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
        f'<path {kind} d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
        f'<path {kind} d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>',
    )
    return f"  <g><title>{escape(title)}</title>{shapes[number % _MARKS]}</g>\n"


def _text(x: float, y: float, text: str, kind: str = "", extra: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'  <text{marked} x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>\n'
