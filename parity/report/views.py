"""Caches, positions and masks as figures: a title, a sentence that says what differs, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from parity.report.media import KvView, MaskView, RopeView
from parity.report.pixels import (
    ABSENT,
    ACCENT,
    ALARM,
    Array,
    Heat,
    draw_heat,
    error_colours,
    reduce_cells,
    shade,
)
from parity.report.svg import Chart, Series, draw
from parity.report.wording import clean, clip, number

MAX_VIEWS = 4
HOVER_CELLS = 160  # many maps share a page; larger ones are plain pictures


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together. `differs` sorts figures: what differs comes first."""

    title: str
    sentence: str
    pictures: tuple[Markup, ...]
    differs: bool = False
    severity: float = 0.0


@dataclass(frozen=True)
class Figures:
    """Figures to draw, those that differ most first; the names of what differs but is not drawn, and of what agrees."""

    drawn: tuple[Figure, ...]
    left_out: tuple[str, ...]
    agreeing: tuple[str, ...]

    @property
    def differ(self) -> bool:
        return any(figure.differs for figure in self.drawn)

    @property
    def count(self) -> int:
        return len(self.drawn) + len(self.left_out) + len(self.agreeing)


def worst_first(figures: Sequence[Figure]) -> Figures:
    """Draw what differs; where nothing does, one figure stands for all."""
    differing = sorted((f for f in figures if f.differs), key=lambda figure: -figure.severity)
    agreeing = [figure for figure in figures if not figure.differs]
    drawn = differing[:MAX_VIEWS] or agreeing[:1]
    same = tuple(figure.title for figure in agreeing if figure not in drawn)
    return Figures(tuple(drawn), tuple(figure.title for figure in differing[MAX_VIEWS:]), same)


def kv_figure(view: KvView) -> Figure:
    """Held frames of the reference, of the port, and the error of each entry."""
    reference, port = np.atleast_2d(view.held_reference), np.atleast_2d(view.held_port)
    if reference.shape != port.shape:
        sides = f"{_shape(reference)} in the reference, {_shape(port)} in the port"
        return Figure(clean(view.layer), f"The caches have different sizes: {sides}.", (), True, np.inf)
    wrong = reference != port
    pictures = [_held(view, "reference", reference, wrong), _held(view, "port", port, wrong)]
    worst = 0.0
    if view.error is not None and np.shape(view.error) == reference.shape:
        error = np.asarray(view.error, np.float64)
        names = tuple(clip(name, 16) for name in view.rows)
        worst = float(np.nanmax(np.where(np.isnan(error), 0, error), initial=0.0))
        pictures.append(error_heat("error of each entry", error, view.floor, view.row_label, view.column_label, names))
    sentence = _kv_sentence(view, reference, port, wrong)
    if worst > view.floor:
        sentence += f" Worst error of an entry: {number(worst)}."
    return Figure(clean(view.layer), sentence, tuple(pictures), bool(wrong.any()) or worst > view.floor, worst)


def _kv_sentence(view: KvView, reference: NDArray[Any], port: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    if not wrong.any():
        return f"Both sides hold the same frames in every {clean(view.column_label)}."
    row, column = (int(i) for i in np.argwhere(wrong)[0])
    when = view.rows[row] if row < len(view.rows) else str(row)
    held = [f"frame {value}" if value >= 0 else "nothing" for value in (reference[row, column], port[row, column])]
    return (
        f"{int(wrong.sum())} of {wrong.size} entries hold another frame, first {clean(view.row_label)} {clean(when)}, "
        f"{clean(view.column_label)} {column}: {held[0]} in the reference, {held[1]} in the port."
    )


def _held(view: KvView, side: str, held: NDArray[Any], wrong: NDArray[np.bool_]) -> Markup:
    top = max(1, int(held.max(initial=0)))
    colours = shade(ACCENT, np.where(held >= 0, 0.12 + 0.6 * held / top, 0.0))
    if side == "port":
        colours = np.where(wrong[..., None], shade(ALARM, np.full(held.shape, 0.75)), colours)
    row_step, column_step = (max(1, -(-length // 256)) for length in held.shape)

    def mark(row: int, column: int) -> str:
        value = held[row, column]
        return "·" if value < 0 else str(value) if value < 1000 else ""

    def describe(row: int, column: int) -> str:
        return f"{view.row_label} {row}, {view.column_label} {column}: " + (
            f"frame {held[row, column]}" if held[row, column] >= 0 else "empty"
        )

    small = row_step == column_step == 1
    return draw_heat(
        Heat(
            title=f"frames held · {side}",
            colours=colours[::row_step, ::column_step],
            row_label=view.row_label,
            column_label=view.column_label,
            describe=describe if small else None,
            marks=mark if small else None,
            rows=tuple(clip(name, 16) for name in view.rows) if small else (),
            columns=tuple(clip(name, 16) for name in view.columns) if small else (),
            hover=HOVER_CELLS,
        )
    )


def rope_figure(view: RopeView) -> Figure:
    """Error per position and channel, and the worst error of each position and of each channel."""
    reference, port = (np.atleast_2d(np.asarray(side, np.float64)) for side in (view.reference, view.port))
    if reference.shape != port.shape:
        sides = f"{_shape(reference)} in the reference, {_shape(port)} in the port"
        return Figure(clean(view.name), f"The tables have different shapes: {sides}.", (), True, np.inf)
    with np.errstate(invalid="ignore"):
        error = np.where(reference == port, 0.0, np.abs(port - reference))
    error = np.where(np.isnan(error) & ~(np.isnan(reference) & np.isnan(port)), np.inf, error)
    worst = float(np.nanmax(error, initial=0.0))
    if not worst > view.floor:
        return Figure(
            clean(view.name), f"Equal within {number(view.floor)} at every {clean(view.row_label)}.", (), False, worst
        )
    over = error > view.floor
    rows, columns = np.flatnonzero(over.any(axis=1)), np.flatnonzero(over.any(axis=0))
    row, column = clean(view.row_label), clean(view.column_label)
    sentence = (
        f"Differs at {len(rows)} of {over.shape[0]} {row}s (first {rows[0]}) and in {len(columns)} of {over.shape[1]} "
        f"{column}s (first {columns[0]}); largest difference {number(worst)}."
    )
    pictures = (
        error_heat("|port − reference|", error, view.floor, view.row_label, view.column_label),
        profile(error.max(axis=1), view.floor, view.row_label),
        profile(error.max(axis=0), view.floor, view.column_label),
    )
    return Figure(clean(view.name), sentence, pictures, True, worst)


def profile(worst: Array, floor: float, axis: str) -> Markup:
    step = max(1, len(worst) // 400)
    xs = [float(i) for i in range(0, len(worst), step)]
    ys = [float(np.nanmax(worst[i : i + step])) for i in range(0, len(worst), step)]
    series = (Series("floor", xs, [floor] * len(xs), "floor"), Series("worst difference", xs, ys, "error"))
    return draw(
        Chart(f"worst difference per {axis}", series, x_label=axis, ticks=_whole(len(worst)), width=420, height=200)
    )


def mask_figure(view: MaskView) -> Figure:
    """What both sides see, only the reference, only the port; and how many columns each row sees."""
    reference, port = (np.atleast_2d(np.asarray(side)).astype(bool) for side in (view.reference, view.port))
    if reference.shape != port.shape:
        sides = f"{_shape(reference)} in the reference, {_shape(port)} in the port"
        return Figure(clean(view.name), f"The masks have different shapes: {sides}.", (), True, np.inf)
    row, column = clean(view.row_label), clean(view.column_label)
    lost, gained = reference & ~port, port & ~reference
    differing = int((lost | gained).sum())
    if differing:
        rows = np.flatnonzero((lost | gained).any(axis=1))
        sentence = (
            f"{int(lost.sum())} {column}s are hidden and {int(gained.sum())} shown that should not be, "
            f"in {len(rows)} of {reference.shape[0]} rows; first {row} {rows[0]} sees {int(port[rows[0]].sum())} "
            f"instead of {int(reference[rows[0]].sum())}."
        )
    else:
        sentence = f"Every {row} sees the same {column}s on both sides."
    # 1 nothing, 2 both, 3 only the reference, 4 only the port: reducing by the maximum keeps what differs.
    codes, tall, wide = reduce_cells(np.select([gained, lost, reference], [4.0, 3.0, 2.0], 1.0), 256)
    hues, strengths = (ACCENT, ACCENT, ABSENT, ALARM), (0.0, 0.45, 0.95, 0.95)
    colours = np.zeros((*codes.shape, 4), np.uint8)
    for code, (hue, strength) in enumerate(zip(hues, strengths, strict=True), start=1):
        colours = np.where((codes == code)[..., None], shade(hue, np.full(codes.shape, strength)), colours)
    words = ("hidden", "visible", "visible only in the reference", "visible only in the port")

    def describe(i: int, j: int) -> str:
        return f"{row} {i * tall}, {column} {j * wide}: {words[int(codes[i, j]) - 1]}"

    heat = Heat(f"visible {column}s", colours, row, column, describe, width=420, hover=HOVER_CELLS)
    counts = [[float(v) for v in side.sum(axis=1)] for side in (reference, port)]
    xs = [float(i) for i in range(reference.shape[0])]
    series = (Series("reference", xs, counts[0], "floor"), Series("port", xs, counts[1], "error"))
    title = f"visible {column}s per {row}"
    chart = Chart(
        title,
        series,
        x_label=row,
        y_label=f"{column}s: dashed reference, solid port",
        log=False,
        ticks=_whole(len(xs)),
        width=420,
        height=220,
    )
    return Figure(clean(view.name), sentence, (draw_heat(heat), draw(chart)), differing > 0, float(differing))


def kv_overview(views: Sequence[KvView]) -> Markup:
    """Layers against slots: the worst error over all rows; empty unless several layers of one width have errors."""
    known = [(v, np.atleast_2d(np.asarray(v.error, np.float64))) for v in views if v.error is not None]
    known = [(view, error) for view, error in known if error.size]
    if len(known) < 2 or len({error.shape[1] for _, error in known}) > 1:
        return Markup("")
    worst = np.stack([_column_worst(error) for _, error in known])
    names = tuple(clip(view.layer, 28) for view, _ in known)
    floor = max(view.floor for view, _ in known)
    return error_heat("worst error per layer and slot", worst, floor, "layer", "slot", names, 960)


def _column_worst(error: Array) -> Array:
    worst = np.where(np.isnan(error), -np.inf, error).max(axis=0)
    return np.where(np.isneginf(worst), np.nan, worst)


def error_heat(
    title: str, error: Array, floor: float, row: str, column: str, rows: tuple[str, ...] = (), width: int = 300
) -> Markup:
    cells, tall, wide = reduce_cells(error, 256)

    def describe(i: int, j: int) -> str:
        value = "not compared" if np.isnan(cells[i, j]) else f"{number(float(cells[i, j]))}, floor {number(floor)}"
        return f"{row} {rows[i] if i < len(rows) and tall == 1 else i * tall}, {column} {j * wide}: {value}"

    return draw_heat(
        Heat(
            title,
            error_colours(cells, floor),
            row,
            column,
            describe,
            rows if tall == 1 else (),
            width=width,
            hover=HOVER_CELLS,
        )
    )


def _whole(count: int) -> tuple[tuple[float, str], ...]:
    step = max(1, count // 12)
    return tuple((float(i), str(i)) for i in range(0, count, step))


def _shape(values: NDArray[Any]) -> str:
    return "×".join(map(str, values.shape))
