"""Tokens per second against context, or the like, as an SVG picture of a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 74, 56  # margins around the axes
COLOURS = ("#1f5fbf", "#b3541e", "#2e7d32", "#7b3fa0")
STEPS = (1, 2, 2.5, 5, 10)  # that a y axis is read in
MOST_TICKS = 6


@dataclass(frozen=True)
class Series:
    """points: (context in tokens, tokens per second)."""

    name: str
    points: Sequence[tuple[int, float]]


def svg(
    title: str,
    subtitle: str,
    series: Sequence[Series],
    y_name: str = "tokens per second",
    x_name: str = "context, tokens (logarithmic)",
) -> str:
    """An SVG document. x is log2 of the context, y begins at 0. There must be a point."""
    points = [point for one in series for point in one.points]
    low, high = (math.log2(f(context for context, _ in points)) for f in (min, max))
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    step = tick_step(max(speed for _, speed in points))
    top = step * math.ceil(1.08 * max(speed for _, speed in points) / step)  # room for the labels

    def x(context: int) -> float:
        share = (math.log2(context) - low) / (high - low)
        return LEFT + 30 + share * (WIDTH - LEFT - RIGHT - 60)

    def y(speed: float) -> float:
        return HEIGHT - BOTTOM - speed / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        text(LEFT, 26, title, size=17, weight="bold"),
        text(LEFT, 46, subtitle, colour="#555"),
    ]
    for i in range(round(top / step) + 1):
        at = y(i * step)
        parts += [line(LEFT, at, WIDTH - RIGHT, at, "#ddd"), text(LEFT - 8, at + 4, f"{i * step:g}", "end")]
    for context in sorted({context for context, _ in points}):
        at, base = x(context), HEIGHT - BOTTOM
        parts += [line(at, base, at, base + 5, "#222"), text(at, base + 20, str(context), "middle")]
    parts += [
        line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#222"),
        line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "#222"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name, "middle"),
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>",
    ]
    for i, (one, colour) in enumerate(zip(series, COLOURS, strict=False)):
        places = [(x(context), y(speed), context, speed) for context, speed in sorted(one.points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for px, py, context, speed in places:
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
            beside = [y(other) for at, other in points if at == context and other != speed]
            if len(series) <= 2:  # of more, no place for a label is free of the others
                parts.append(text(px, label_place(py, beside), label(speed), "middle", colour=colour))
        if len(series) > 1:
            step = min(330, (WIDTH - LEFT - RIGHT) // len(series))
            parts.append(text(LEFT + 8 + step * i, 66, f"● {one.name}", colour=colour))
    return "\n".join([*parts, "</svg>\n"])


def stacked(pictures: Sequence[str]) -> str:
    """Pictures of ``svg`` one below the other, as one document."""
    size = f'width="{WIDTH}" height="{HEIGHT * len(pictures)}"'
    inner = [picture.replace("<svg ", f'<svg y="{HEIGHT * i}" ', 1) for i, picture in enumerate(pictures)]
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *inner, "</svg>\n"])


def tick_step(largest: float) -> float:
    """The smallest round step with which MOST_TICKS reach ``largest``."""
    power = 10.0 ** math.floor(math.log10(largest / MOST_TICKS))
    return next(power * step for step in STEPS if power * step * MOST_TICKS >= largest)


def label_place(at: float, beside: Sequence[float]) -> float:
    """Where the label of a point at height ``at`` goes: above it, but below where another point is above, if it fits.

    beside: heights of the other series' points at the same context.
    """
    lowest = HEIGHT - BOTTOM - 24  # a point below this has no room for a label between it and the axis
    if any(other < at for other in beside) and at <= lowest:
        return at + 20
    crowded = any(other > lowest and 0 < other - at < 26 for other in beside)  # and that label is above its point
    return at - (26 if crowded else 10)


def label(speed: float) -> str:
    """A speed in three digits or more: 3.14, 31.4, 314, 3142."""
    return f"{speed:.{max(0, 2 - math.floor(math.log10(speed)))}f}"


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def text(
    x: float, y: float, words: str, anchor: str = "start", size: int = 13, weight: str = "normal", colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        f' fill="{colour}">{escape(words, quote=False)}</text>'
    )
