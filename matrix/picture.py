"""The matrix as an SVG heat map, readable on a light and a dark page and without colour."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from matrix.marks import Mark

_CELL, _ROW = 26, 24
_CHARACTER = 7.3  # width of one character of the 12 px monospaced labels
_MARGIN = 16
_LEGEND_ROW = 20

_STYLE = """\
  <style>
    text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
    .page { fill: #ffffff; } .caption { fill: #59636e; }
    .planned { fill: #1a7f37; } .partly { fill: #aceebb; } .contained { fill: #b6e3ff; }
    .outside { fill: #eaeef2; } .elsewhere { fill: #e7dcfb; } .unknown { fill: #bc4c00; }
    text.planned, text.unknown { fill: #ffffff; } text.partly { fill: #044f1e; } text.contained { fill: #0a3069; }
    text.outside { fill: #59636e; } text.elsewhere { fill: #512a97; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .page { fill: #0d1117; } .caption { fill: #9198a1; }
      .planned { fill: #2ea043; } .partly { fill: #033a16; } .contained { fill: #0c2d6b; }
      .outside { fill: #212830; } .elsewhere { fill: #271052; } .unknown { fill: #db6d28; }
      text.planned, text.unknown { fill: #0d1117; } text.partly { fill: #7ee787; } text.contained { fill: #a5d6ff; }
      text.outside { fill: #9198a1; } text.elsewhere { fill: #d2a8ff; }
    }
  </style>
"""


def picture(rows: Mapping[str, Mapping[str, Mark]], title: str) -> str:
    """`rows` holds the marks of each patch by release, all over the same releases."""
    releases = list(next(iter(rows.values())))
    left = _MARGIN + _CHARACTER * max(map(len, rows)) + 10
    top = _MARGIN + 24 + _CHARACTER * max(map(len, releases))
    legend = top + _ROW * len(rows) + 14
    width = left + _CELL * len(releases) + _MARGIN
    height = legend + _LEGEND_ROW * len(Mark) + _MARGIN - 4
    body = [_text(_MARGIN, _MARGIN + 10, title)]
    for column, release in enumerate(releases):
        x, y = left + _CELL * (column + 0.5) + 4, top - 6
        body.append(_text(x, y, release, extra=f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
    for row, (patch_id, marks) in enumerate(rows.items()):
        y = top + _ROW * row
        body.append(_text(left - 10, y + 16, patch_id, extra=' text-anchor="end"'))
        for column, release in enumerate(releases):
            hint = f"{patch_id} on {release}: {marks[release].meaning}"
            body.append(_cell(left + _CELL * column, y, marks[release], hint))
    for row, mark in enumerate(Mark):
        y = legend + _LEGEND_ROW * row
        body.append(_cell(_MARGIN, y - 3, mark, mark.meaning, height=_LEGEND_ROW - 2))
        body.append(_text(_MARGIN + _CELL + 8, y + 11, mark.meaning, "caption"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title)}">\n{_STYLE}'
        f'  <rect class="page" width="100%" height="100%" rx="8"/>\n{"".join(body)}</svg>\n'
    )


def _cell(x: float, y: float, mark: Mark, hint: str, height: int = _ROW) -> str:
    name = mark.name.lower()
    box = f'<rect class="{name}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{_CELL - 2}" height="{height - 2}" rx="3"/>'
    letter = _text(x + _CELL / 2, y + height / 2 + 4, mark.letter, name, ' text-anchor="middle"').strip()
    return f"  <g><title>{escape(hint)}</title>{box}{letter}</g>\n"


def _text(x: float, y: float, text: str, kind: str = "", extra: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'  <text{marked} x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>\n'
