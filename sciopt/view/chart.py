"""Line charts as inline SVG: light enough for a report of hundreds of designs, sharp on screen and on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["line_chart", "ticks"]

_POINTS = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 22, 26


def line_chart(
    x: Sequence[float], y: Sequence[float], *, title: str, x_label: str = "step", width: int = 460, height: int = 200
) -> str:
    """One curve with axes; logarithmic where positive values span more than two decades.

    Args:
        x: horizontal values, increasing.
        y: vertical values; what is not finite leaves a gap.
        title: what ``y`` is, with its unit.
        x_label: what ``x`` is.
        width: of the picture, in CSS pixels.
        height: of the picture, in CSS pixels.

    Returns:
        An ``<svg>`` element; its text is escaped.

    Example:
        >>> line_chart([0, 1, 2], [4.0, 2.0, 1.0], title="objective").startswith("<svg")
        True
    """
    points = _thin([(float(a), float(b)) for a, b in zip(x, y, strict=True)])
    finite = [(a, b) for a, b in points if _drawable(a) and _drawable(b)]
    label = f"{title} over {x_label}"
    head = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">'
        f'<text class="title" x="{_LEFT}" y="14">{escape(title)}</text>'
    )
    if not finite:
        return head + f'<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">no finite values</text></svg>'
    low, high = min(b for _, b in finite), max(b for _, b in finite)
    log = low > 0 and high / low > 100
    x_ticks = ticks(min(a for a, _ in finite), max(a for a, _ in finite))
    if all(a == round(a) for a, _ in finite):
        x_ticks = [tick for tick in x_ticks if tick == round(tick)] or x_ticks
    y_ticks = _log_ticks(low, high) if log else ticks(low, high)
    left, right = min(x_ticks[0], finite[0][0]), max(a for a, _ in finite)
    bottom, top = min(y_ticks[0], low), max(y_ticks[-1], high)

    def px(value: float) -> float:
        return _LEFT + (value - left) / ((right - left) or 1.0) * (width - _LEFT - _RIGHT)

    def py(value: float) -> float:
        fraction = _fraction(value, bottom, top, log)
        return height - _BOTTOM - fraction * (height - _TOP - _BOTTOM)

    parts = [head]
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{py(tick) + 3.5:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
    for tick in x_ticks:
        if left <= tick <= right:
            parts.append(
                f'<text x="{px(tick):.1f}" y="{height - _BOTTOM + 14}" text-anchor="middle">{_tick_text(tick)}</text>'
            )
    parts.append(f'<text x="{width - _RIGHT}" y="{height - 2}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{height - _BOTTOM}" y2="{height - _BOTTOM}"/>'
    )
    for run in _runs(points, log):
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in run)
        parts.append(f'<polyline class="curve" points="{path}"/>')
    last_x, last_y = finite[-1]
    parts.append(f'<circle class="end" cx="{px(last_x):.1f}" cy="{py(last_y):.1f}" r="2.5"/></svg>')
    return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover an interval.

    Example:
        >>> ticks(0, 94)
        [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    powers = list(range(first, last + 1, stride))
    return [10.0**power for power in powers]


def _fraction(value: float, bottom: float, top: float, log: bool) -> float:
    if log:
        value, bottom, top = math.log10(value), math.log10(bottom), math.log10(top)
    return (value - bottom) / ((top - bottom) or 1.0)


def _tick_text(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    stride = (len(points) - 1) / (_POINTS - 1)
    return [points[round(i * stride)] for i in range(_POINTS)]


def _drawable(value: float) -> bool:
    """Finite, and so small that differences are finite too."""
    return abs(value) < 1e300


def _runs(points: list[tuple[float, float]], log: bool) -> list[list[tuple[float, float]]]:
    """Stretches without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        if _drawable(a) and _drawable(b) and (b > 0 or not log):
            runs[-1].append((a, b))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
