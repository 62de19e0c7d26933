"""Curves as SVG: a value's logarithm over points that are named, one line for each side of the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from benchmarks.reporting import number
from benchmarks.rows import Unit

WIDTH: Final = 860
HEIGHT: Final = 420
LEFT: Final = 80
RIGHT: Final = 250
"""Room for the names of the lines."""
TOP: Final = 40
BOTTOM: Final = 40
COLOURS: Final = (
    "#0b6e4f",
    "#c8553d",
    "#3d5a98",
    "#8d6a9f",
    "#b8860b",
    "#4a7c8c",
    "#7a7a7a",
    "#a23b72",
    "#5b8c2a",
    "#704214",
    "#2f2f2f",
)
"""Ours first, and drawn thicker."""

LABEL_DISTANCE: Final = 16
"""Pixels between two names, at least."""


def plot(title: str, points: Sequence[str], lines: Mapping[str, Sequence[float | None]], unit: Unit) -> str:
    """Return the SVG of a plot.

    Args:
        title: What is shown, for whoever cannot see it too.
        points: The names of the places on the horizontal axis.
        lines: The values of each line, one for each point, or None where there is none.
        unit: What the values are in.
    """
    values = [value for line in lines.values() for value in line if value]
    lowest, highest = _decades(values)

    def across(place: int) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(points)

    def down(value: float) -> float:
        return TOP + (highest - math.log10(value)) / (highest - lowest) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, TOP - 18, title, "font-weight='bold'")]
    for decade in range(lowest, highest + 1):
        height = down(10.0**decade)
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{height:.1f}' y2='{height:.1f}' stroke='#ddd'/>")
        parts.append(_text(LEFT - 8, height + 4, number(10.0**decade, unit), "text-anchor='end'"))
    for place, point in enumerate(points):
        parts.append(_text(across(place), HEIGHT - BOTTOM + 20, point, "text-anchor='middle'"))
    ends = {}
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        drawn = [(across(place), down(value)) for place, value in enumerate(line) if value]
        if drawn:
            parts.append(_line(drawn, colour, thick=colour == COLOURS[0]))
            ends[name] = (drawn[-1][1], colour)
    parts += _names(ends)
    content = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img' "
        f"font-family='sans-serif' font-size='13' fill='#222'>\n<title>{escape(title)}</title>\n"
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#fff'/>\n{content}\n</svg>\n"
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten that enclose the values, one decade apart at least."""
    lowest = math.floor(math.log10(min(values)))
    return lowest, max(math.ceil(math.log10(max(values))), lowest + 1)


def _line(drawn: Sequence[tuple[float, float]], colour: str, *, thick: bool) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in drawn)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{3 if thick else 1.5}'/>{dots}"


def _names(ends: Mapping[str, tuple[float, str]]) -> list[str]:
    """Return the lines' names beside their ends, moved apart where they would overlap, and up if they would leave the picture."""
    names = sorted(ends, key=lambda name: ends[name][0])
    heights: list[float] = []
    for name in names:
        heights.append(max(ends[name][0], heights[-1] + LABEL_DISTANCE if heights else 0.0))
    limit = float(HEIGHT - BOTTOM)
    for place in reversed(range(len(heights))):
        heights[place] = limit = min(heights[place], limit)
        limit -= LABEL_DISTANCE
    return [
        _text(WIDTH - RIGHT + 8, height + 4, name, f"fill='{ends[name][1]}'") for name, height in zip(names, heights, strict=True)
    ]


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {attributes}>{escape(text)}</text>"
