"""Charts as SVG text: lines over an axis, with marks.  Pure functions of numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Line", "chart", "log_ticks", "ticks"]

_WIDTH, _HEIGHT = 860, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 30, 34


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend.
        colour: of CSS.
        points: x and y, in units of the axes.
        filled: whether the area below is filled.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    filled: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: from where to where, and what is written at which place.

    Attributes:
        low: the value at its begin.
        high: the value at its end.
        labels: values and their text.
        log: whether it is logarithmic; then `low` is above 0.
    """

    low: float
    high: float
    labels: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """Tell where a value is, from 0 to 1."""
        low, high = self.low, max(self.high, self.low + 1e-12)
        if self.log:
            value = math.log(max(value, low) / low)
            return min(value / math.log(high / low), 1.0) if high > low else 0.0
        return min(max((value - low) / (high - low), 0.0), 1.0)


def ticks(high: float, text: Callable[[float], str], wanted: int = 5) -> Axis:
    """Make an axis from 0 with round numbers."""
    high = high if high > 0 else 1.0
    rough = high / wanted
    step = 10 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
    last = math.ceil(high / step - 1e-9)
    return Axis(0.0, last * step, [(k * step, text(k * step)) for k in range(last + 1)])


def log_ticks(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """Make a logarithmic axis with a label at each power of ten."""
    low = max(low, 1e-6)
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(max(high, low)) - 1e-9), first + 1)
    labels = [(10.0**k, text(10.0**k)) for k in range(first, last + 1)]
    return Axis(10.0**first, 10.0**last, labels, log=True)


def chart(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw a chart.

    Args:
        title: above it.
        x: from left to right.
        y: from the bottom to the top.
        lines: drawn in order.
        marks: vertical lines at places of x, with a text.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>',
    ]
    left, right, floor = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value, text in y.labels:
        height = _y(y, value)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{height}" y2="{height}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{height + 4}" text-anchor="end">'
            f"{escape(text)}</text>"
        )
    for value, text in x.labels:
        across = _x(x, value)
        parts.append(
            f'<line class="grid" x1="{across}" x2="{across}" y1="{_TOP}" y2="{floor}"/>'
            f'<text class="tick" x="{across}" y="{floor + 16}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    parts += [_draw(line, x, y) for line in lines if line.points]
    for number, (at, text) in enumerate(marks):
        across = _x(x, at)
        # In the right half it stands on the left of its line, where there is room for it.
        place, anchor = (across + 4, "start") if across < _WIDTH / 2 else (across - 4, "end")
        parts.append(
            f'<line class="mark" x1="{across}" x2="{across}" y1="{_TOP}" y2="{floor}"/>'
            f'<text class="marked" x="{place}" y="{_TOP + 12 + 13 * (number % 3)}" '
            f'text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )
    parts.append(_legend(lines))
    parts.append("</svg>")
    return "\n".join(parts)


def _draw(line: Line, x: Axis, y: Axis) -> str:
    places = [(_x(x, across), _y(y, up)) for across, up in line.points]
    if len(places) == 1:
        (across, up), *_ = places
        return f'<circle cx="{across}" cy="{up}" r="3" fill="{line.colour}"/>'
    text = " ".join(f"{across},{up}" for across, up in places)
    drawn = f'<polyline points="{text}" fill="none" stroke="{line.colour}" stroke-width="1.8"/>'
    if line.filled:
        floor = _HEIGHT - _BOTTOM
        area = f"{places[0][0]},{floor} {text} {places[-1][0]},{floor}"
        drawn = f'<polygon points="{area}" fill="{line.colour}" opacity="0.25"/>{drawn}'
    return drawn


def _legend(lines: Sequence[Line]) -> str:
    parts = []
    across = _WIDTH - _RIGHT
    for line in reversed([line for line in lines if line.name]):
        across -= 26 + 7 * len(line.name)
        parts.append(
            f'<rect x="{across}" y="8" width="12" height="4" fill="{line.colour}"/>'
            f'<text class="tick" x="{across + 16}" y="14">{escape(line.name)}</text>'
        )
    return "".join(parts)


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM), 1)
