"""The charts of a result: error along the execution, and along each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from parity.report.svg import Chart, Point, Series, draw
from parity.report.wording import number, place
from parity.result import Row

BINS = 240
MAX_POINTS = 60


def growth(rows: Sequence[Row]) -> Markup:
    """Error and floor in the order of execution. Long runs are binned; each bin shows its worst record."""
    if not rows:
        return Markup("")
    bins = np.array_split(np.arange(len(rows)), min(BINS, len(rows)))
    worst = [max((rows[i] for i in part), key=_severity) for part in bins]
    starts = [float(part[0]) for part in bins]
    over = [row.error if row.diverged else math.nan for row in worst]
    equal = [0.0 if row.error == 0 else math.nan for row in worst]  # a line of its own, or the chart is a comb
    first = next(((start, row) for start, row in zip(starts, worst, strict=True) if row.diverged), None)
    return draw(
        Chart(
            title="error along the execution",
            series=(
                Series("floor", starts, [row.floor or math.nan for row in worst], "floor"),
                Series("equal", starts, equal, "soft"),
                Series("error", starts, [row.error or math.nan for row in worst], "error"),
                Series("diverged", starts, over, "over"),
            ),
            points=() if first is None else (Point(first[0], first[1].error, _hover(first[1])),),
            rules=() if first is None else ((first[0], "first divergence"),),
            x_label="records in the order of execution",
            y_label="relative L2",
            bands=_bands(rows),
        )
    )


def per_axis(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """For each axis with at least two values: the worst and the median error at each value, with the worst's floor."""
    charts = []
    for axis in _axes(rows):
        by_value: dict[int, list[Row]] = {}
        for row in rows:
            if axis in row.coords and not math.isnan(row.error):
                by_value.setdefault(row.coords[axis], []).append(row)
        if len(by_value) < 2:
            continue
        values = sorted(by_value)
        worst = [max(by_value[value], key=lambda row: (row.diverged, row.error)) for value in values]
        median = [float(np.median([row.error for row in by_value[value]])) for value in values]
        xs = [float(value) for value in values]
        points = [
            Point(float(v), r.error, place(r.site, r.coords)) for v, r in zip(values, worst, strict=True) if r.diverged
        ]
        chart = Chart(
            title=f"error per {axis}",
            series=(
                Series("floor of the worst", xs, [row.floor for row in worst], "floor"),
                Series("median error", xs, median, "soft"),
                Series("worst error", xs, [row.error for row in worst], "error"),
            ),
            points=tuple(points[:MAX_POINTS]),
            x_label=axis,
            y_label="relative L2",
            ticks=tuple((float(value), str(value)) for value in values),
            width=470,
            height=220,
        )
        charts.append((axis, draw(chart)))
    return charts


def _hover(row: Row) -> str:
    return f"{place(row.site, row.coords)}: {number(row.error)}, floor {number(row.floor)}"


def _severity(row: Row) -> tuple[bool, float]:
    """Diverged first, then how far over the floor; an error that is no number counts most of all."""
    if math.isnan(row.error):
        return row.diverged, math.inf if row.diverged else -1.0
    return row.diverged, row.error / row.floor if row.floor > 0 else row.error * 1e30


def _axes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(axis for row in rows for axis in row.coords))


def _bands(rows: Sequence[Row]) -> tuple[tuple[float, float, str], ...]:
    """Stretches of the execution with one value of the outermost axis that changes; none when there are too many."""
    for axis in _axes(rows):
        edges: list[tuple[int, int | None]] = []
        for position, row in enumerate(rows):
            value = row.coords.get(axis)
            if not edges or edges[-1][1] != value:
                edges.append((position, value))
        if 2 <= len(edges) <= 32:
            stops = [position for position, _ in edges[1:]] + [len(rows)]
            return tuple(
                (float(start), float(stop), "" if value is None else f"{axis} {value}")
                for (start, value), stop in zip(edges, stops, strict=True)
            )
    return ()
