"""The ratios as a picture: one bar a case, and a line where what is replaced would end."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from overlay.errors import OverlayError
from overlay.verify.outcome import Result

_GOOD, _SLOW, _TEXT, _LINE = "#2a7f62", "#c8553d", "#222222", "#888888"
_BAR, _GAP, _LEFT, _WIDTH = 14, 6, 420, 460


class Bar(NamedTuple):
    """One case: what it is, and how many of its calls fit into one of what it replaces."""

    label: str
    ratio: float


def bars_of(results: Sequence[Result]) -> list[Bar]:
    """Of the cases that were timed."""
    return [
        Bar(f"{result.patch.id}: {outcome.label}", outcome.ratio)
        for result in results
        for outcome in result.outcomes
        if outcome.ratio is not None
    ]


def save(path: Path, title: str, bars: Sequence[Bar]) -> None:
    """Write the picture: .svg as it is, every other kind by matplotlib. Raises OverlayError where that fails."""
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(_svg(title, bars), encoding="utf-8")
        else:
            _by_matplotlib(path, title, bars)
    except (OSError, ValueError) as error:  # matplotlib: a suffix that it does not know
        raise OverlayError(f"--plot {path} cannot be written: {error}. Name another file.") from error


def _colour(bar: Bar) -> str:
    return _GOOD if bar.ratio >= 1 else _SLOW


def _svg(title: str, bars: Sequence[Bar]) -> str:
    scale = _WIDTH / max([1.0, *(bar.ratio for bar in bars)])
    height = 60 + len(bars) * (_BAR + _GAP)
    one = _LEFT + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 70}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for row, bar in enumerate(bars):
        y = 40 + row * (_BAR + _GAP)
        width = bar.ratio * scale
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_colour(bar)}"/>',
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 11}">x{bar.ratio:.2f}</text>',
        ]
    parts.append(f'<line x1="{one:.1f}" x2="{one:.1f}" y1="34" y2="{height - 14}" stroke="{_LINE}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _by_matplotlib(path: Path, title: str, bars: Sequence[Bar]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.26 * max(1, len(bars))), layout="constrained")
    FigureCanvasAgg(figure)  # whatever backend the user's matplotlibrc names: there may be no display
    axes = figure.add_subplot()
    drawn = axes.barh([bar.label for bar in bars], [bar.ratio for bar in bars], color=[_colour(bar) for bar in bars])
    axes.bar_label(drawn, [f"x{bar.ratio:.2f}" for bar in bars], padding=3, fontsize=8)
    axes.axvline(1, color=_LINE, linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("calls of the kernel in the time of one of what it replaces")
    axes.set_title(title)
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=150)
