"""The charts of a result: error along the execution, error along each axis, and where over sites and coordinates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from parity.report.pixels import Heat, draw_heat, error_colours
from parity.report.svg import Chart, Point, Series, draw
from parity.report.wording import clip, number, place
from parity.result import Row

BINS = 240
MAX_POINTS = 60
GROUPS, PLACES = 32, 30


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


def overview(rows: Sequence[Row]) -> Markup:
    """Groups of sites against coordinates, coloured by the worst error over its floor; empty without coordinates."""
    places = list(dict.fromkeys(_frozen(row.coords) for row in rows))
    if len(places) < 2:
        return Markup("")
    group_of = _groups(list(dict.fromkeys(row.site for row in rows)))
    groups = list(dict.fromkeys(group_of[row.site] for row in rows))
    tall, wide = -(-len(groups) // GROUPS), -(-len(places) // PLACES)
    rank_group = {name: i // tall for i, name in enumerate(groups)}
    rank_place = {key: i // wide for i, key in enumerate(places)}
    cells: dict[tuple[int, int], Row] = {}
    for row in rows:
        cell = rank_group[group_of[row.site]], rank_place[_frozen(row.coords)]
        if cell not in cells or _severity(row) > _severity(cells[cell]):
            cells[cell] = row
    error = np.full((max(rank_group.values()) + 1, max(rank_place.values()) + 1), np.nan)
    floor = np.ones_like(error)
    for cell, row in cells.items():
        # What was not measured, or was refused for another reason than its size, is as bad as can be.
        error[cell] = math.inf if row.diverged and not row.error > row.floor else row.error
        floor[cell] = row.floor

    def describe(i: int, j: int) -> str:
        row = cells.get((i, j))
        return _hover(row) if row else "nothing here"

    return draw_heat(
        Heat(
            title="worst error against its floor",
            colours=error_colours(error, floor),
            row_label="sites in the order of execution",
            column_label=", ".join(dict(places[0]) or dict(places[-1])) or "coordinates",
            describe=describe,
            rows=tuple(clip(groups[i], 40) for i in range(0, len(groups), tall)),
            columns=tuple(",".join(str(v) for _, v in places[i]) or "–" for i in range(0, len(places), wide)),
            width=960,
        )
    )


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


def _frozen(coords: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(coords.items())


def _groups(sites: Sequence[str]) -> dict[str, str]:
    """Name each site's group: a prefix of its dotted name, the largest families split further while there is room."""
    parts = {site: site.split(".") for site in sites}
    group_of = {site: parts[site][0] for site in sites}
    while True:
        families: dict[str, list[str]] = {}
        for site, group in group_of.items():
            families.setdefault(re.sub(r"\d+", "#", group), []).append(site)
        for members in sorted(families.values(), key=len, reverse=True):
            # The blocks of a stack are split together, so that equal ones look equal.
            finer = {site: ".".join(parts[site][: group_of[site].count(".") + 2]) for site in members}
            changed = any(finer[site] != group_of[site] for site in members)
            if changed and len(set((group_of | finer).values())) <= GROUPS:
                group_of |= finer
                break
        else:
            return group_of
