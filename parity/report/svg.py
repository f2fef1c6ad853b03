"""Line charts as small, themeable SVG: colours come from the page's CSS classes and so hold in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from parity.report.wording import clean, number

LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 34.0


@dataclass(frozen=True)
class Series:
    """One line. `style` is a CSS class: `error`, `floor`, `soft`, `over`. A nan breaks the line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "error"


@dataclass(frozen=True)
class Point:
    """One marked value with a text shown on hover."""

    x: float
    y: float
    text: str
    style: str = "over"


@dataclass(frozen=True)
class Chart:
    """A line chart. `ticks` name positions on x, `bands` are (start, stop, name) behind it, `rules` stand upright."""

    title: str
    series: tuple[Series, ...]
    points: tuple[Point, ...] = ()
    x_label: str = ""
    y_label: str = ""
    log: bool = True
    ticks: tuple[tuple[float, str], ...] = ()
    bands: tuple[tuple[float, float, str], ...] = ()
    rules: tuple[tuple[float, str], ...] = ()
    width: int = 960
    height: int = 280


@dataclass(frozen=True)
class _Scale:
    """The vertical axis: where a value is drawn. Zero and infinity have places of their own, below and above all."""

    low: float
    high: float
    log: bool
    zero: bool
    infinite: bool
    height: float

    def place(self, value: float) -> float:
        if math.isinf(value):
            return TOP if value > 0 else self.height - BOTTOM
        if self.log and value <= 0:
            return self.height - BOTTOM
        shown = math.log10(value) if self.log else value
        top = TOP + (18 if self.infinite else 0)
        bottom = self.height - BOTTOM - (18 if self.zero else 0)
        share = (shown - self.low) / (self.high - self.low)
        return bottom - min(max(share, 0.0), 1.0) * (bottom - top)

    def ticks(self) -> list[tuple[float, str]]:
        """Values to label, from the bottom up."""
        if self.log:
            step = max(1, math.ceil((self.high - self.low) / 7))
            found = [(10.0**e, f"1e{e}") for e in range(math.ceil(self.low), math.floor(self.high) + 1, step)]
        else:
            found = [(value, number(value)) for value in _round_steps(self.low, self.high)]
        zero = [(0.0, "0")] if self.log and self.zero else []
        return [*zero, *found, *([(math.inf, "∞")] if self.infinite else [])]


def draw(chart: Chart) -> Markup:
    """Return the chart as one `<svg>` element; `""` when there is nothing to draw."""
    values = [y for s in chart.series for y in s.y] + [p.y for p in chart.points]
    xs = [x for s in chart.series for x in s.x] + [p.x for p in chart.points]
    if not xs or all(math.isnan(value) for value in values):
        return Markup("")
    scale = _scale(values, chart)
    first, last = min(xs), max(xs)
    span = (last - first) or 1.0

    def across(x: float) -> float:
        return LEFT + (x - first) / span * (chart.width - LEFT - RIGHT) if last > first else chart.width / 2

    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escaped(chart.title)}">'
    ]
    bottom = chart.height - BOTTOM
    for position, (start, stop, name) in enumerate(chart.bands):
        x, wide = across(start), max(across(stop) - across(start), 0.5)
        kind = "band odd" if position % 2 else "band"
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{TOP}" width="{wide:.1f}" height="{bottom - TOP:.1f}"/>')
        if wide > 7 * len(name) + 4:
            parts.append(f'<text class="tick mid" x="{x + wide / 2:.1f}" y="{bottom + 14:.1f}">{escaped(name)}</text>')
    for value, label in scale.ticks():
        y = scale.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{chart.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 3.5:.1f}">{escaped(label)}</text>')
    for x_value, label in _fitting(chart, across):
        parts.append(f'<text class="tick mid" x="{across(x_value):.1f}" y="{bottom + 14:.1f}">{escaped(label)}</text>')
    for x_value, label in chart.rules:
        x = across(x_value)
        end = "end" if x > chart.width * 0.8 else "start"
        shift = -5 if end == "end" else 5
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="tick bad {end}" x="{x + shift:.1f}" y="{bottom - 6:.1f}">{escaped(label)}</text>')
    parts += [_line(series, across, scale) for series in chart.series]
    for point in chart.points:
        if math.isnan(point.y):
            continue
        where = f'cx="{across(point.x):.1f}" cy="{scale.place(point.y):.1f}"'
        parts.append(f'<circle class="{point.style}" r="3.2" {where}><title>{escaped(point.text)}</title></circle>')
    parts.append(
        f'<text class="label end" x="{chart.width - RIGHT}" y="{chart.height - 5}">{escaped(chart.x_label)}</text>'
    )
    parts.append(f'<text class="label" x="{LEFT}" y="{chart.height - 5}">{escaped(chart.y_label)}</text></svg>')
    return Markup("".join(parts))


def _scale(values: Iterable[float], chart: Chart) -> _Scale:
    known = [value for value in values if not math.isnan(value)]
    finite = [value for value in known if math.isfinite(value)]
    infinite = any(math.isinf(value) for value in known)
    if not chart.log:
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        return _Scale(low - margin, high + margin, False, False, infinite, chart.height)
    decades = [math.log10(value) for value in finite if value > 0] or [-1.0]
    low, high = math.floor(min(decades)), math.ceil(max(decades))
    return _Scale(low, max(high, low + 1), True, any(value <= 0 for value in finite), infinite, chart.height)


def _line(series: Series, across: Callable[[float], float], scale: _Scale) -> str:
    runs: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if math.isnan(y):
            runs.append([])
        else:
            runs[-1].append(f"{across(x):.1f},{scale.place(y):.1f}")
    title = f"<title>{escaped(series.label)}</title>"
    style = escape(series.style, quote=True)
    parts = []
    for run in filter(None, runs):
        if len(run) > 1:
            parts.append(f'<polyline class="{style}" points="{" ".join(run)}">{title}</polyline>')
        else:  # a line of one point would not be seen
            x_place, y_place = run[0].split(",")
            parts.append(f'<circle class="{style} lone" r="2.4" cx="{x_place}" cy="{y_place}">{title}</circle>')
    return "".join(parts)


def _fitting(chart: Chart, across: Callable[[float], float]) -> list[tuple[float, str]]:
    """The named ticks that have room, from the left."""
    shown: list[tuple[float, str]] = []
    edge = -math.inf
    for value, name in chart.ticks:
        half = 3.6 * len(name) + 4
        if across(value) - half >= edge:
            shown.append((value, name))
            edge = across(value) + half
    return shown


def _round_steps(low: float, high: float) -> list[float]:
    """About five round values between two bounds."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def escaped(text: str) -> str:
    return escape(clean(text), quote=True)
