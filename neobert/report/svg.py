"""Charts as inline SVG text: lines, a histogram, bars. No script, no font, no file beside the page.

A chart is drawn 400 units wide, about a phone's width, so that its text stays readable there, and scales up on a wide
screen. Colours are CSS variables of the page (``--c0`` ...), so that dark mode needs no second drawing.
Cost: linear in the points; long series are thinned to ``POINTS``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 36
POINTS = 400


@dataclass(frozen=True)
class Series:
    """A named line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def number(value: float) -> str:
    """A number for an axis or a cell: few digits, thousands shortened."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Finite points, averaged in groups where there are more than ``POINTS``."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size = -(-len(points) // POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(a for a, _ in g) / len(g), sum(b for _, b in g) / len(g)) for g in groups]


def _frame(title: str, body: list[str], height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


@dataclass(frozen=True)
class Axes:
    """Maps values to the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        return HEIGHT - BOTTOM - (value - self.y0) / ((self.y1 - self.y0) or 1) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str, y_label: str, x_ticks: dict[float, str] | None = None) -> list[str]:
        """Axis lines, ticks and labels."""
        drawn = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            drawn.append(_text(LEFT - 5, y + 4, number(value), "end"))
        marks = x_ticks or {value: number(value) for value in ticks(self.x0, self.x1)}
        drawn += [_text(self.x(value), HEIGHT - BOTTOM + 15, text) for value, text in marks.items()]
        drawn.append(_text((LEFT + WIDTH) / 2, HEIGHT - 4, x_label, css="label"))
        drawn.append(
            f'<text transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
            f'class="label">{escape(y_label)}</text>'
        )
        return drawn


def lines(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a common axis, with a legend. Series without a finite point are left out; none at all gives ''."""
    drawn = [(s.name, thin(s.x, s.y)) for s in series]
    drawn = [(name, points) for name, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    pad = (max(ys) - min(ys)) * 0.05 or abs(ys[0]) * 0.05 or 1.0
    axes = Axes(min(xs), max(xs), min(ys) - pad, max(ys) + pad)
    body = axes.grid(x_label, y_label)
    for i, (name, points) in enumerate(drawn):
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" class="line" style="stroke:var(--c{i % 6})"/>')
        if len(points) == 1:
            body.append(
                f'<circle cx="{path.split(",")[0]}" cy="{path.split(",")[1]}" r="3" style="fill:var(--c{i % 6})"/>'
            )
        body.append(_text(WIDTH - RIGHT - 14, TOP + 12 + 15 * i, name, "end"))
        y = TOP + 8 + 15 * i
        body.append(f'<rect x="{WIDTH - RIGHT - 10}" y="{y}" width="10" height="4" style="fill:var(--c{i % 6})"/>')
    return _frame(title, body)


def histogram(title: str, edges: Sequence[int], counts: Sequence[int], x_label: str, y_label: str) -> str:
    """Bars of equal width over classes ``edges[i] .. edges[i+1] - 1``; their bounds are written below."""
    axes = Axes(0, len(counts), 0, max(max(counts, default=0), 1) * 1.05)
    every = -(-len(edges) // 7)
    body = axes.grid(x_label, y_label, {i: number(edge) for i, edge in enumerate(edges) if i % every == 0})
    base = axes.y(0)
    for i, count in enumerate(counts):
        left, top = axes.x(i), axes.y(count)
        width = axes.x(i + 1) - left - 1
        body.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{base - top:.1f}" class="bar">'
            f"<title>{edges[i]} to {edges[i + 1] - 1}: {count}</title></rect>"
        )
    return _frame(title, body)


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], labels: Sequence[str]) -> str:
    """Horizontal bars: a group a row, a bar a label in that label's colour, its value at the end."""
    height, y, body = 13, 6, []
    top = max([value for _, cells in rows for _, value in cells] + [1e-12])
    for name, cells in rows:
        body.append(_text(2, y + 11, name, "start", "label"))
        y += 16
        for label, value in cells:
            length = max(value / top, 0) * (WIDTH - 50)
            color = f"var(--c{list(labels).index(label) % 6})"
            body.append(f'<rect x="2" y="{y}" width="{length:.1f}" height="{height - 2}" style="fill:{color}"/>')
            body.append(_text(length + 6, y + height - 3, number(value), "start"))
            y += height
        y += 6
    return _frame(title, body, height=y + 2)
