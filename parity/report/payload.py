"""Data for the page's script: the table of sites and the values of some, compressed, in base64, so that nothing in it is HTML."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parity.report.media import ValueView
from parity.report.wording import clean, clip, coords_text
from parity.result import Divergence, Row

MAX_ROWS = 60_000
MAX_BYTES = 2_600_000
MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class Payload:
    """`data` is base64 of zlib of JSON; `shown` of `total` rows are in it (diverged ones first, then every k-th)."""

    data: str
    shown: int
    total: int


def payload(
    rows: Sequence[Row],
    divergences: Sequence[Divergence] = (),
    first: Divergence | None = None,
    most: int = MAX_BYTES,
) -> Payload:
    """Pack the rows with what is said of those that diverge, thinned until they fit in `most` bytes.

    A row that is over its floor without being among the divergences is excused. Divergences that no row measured (missing sites, weights)
    get rows of their own. first: where the page points.
    """
    told: dict[str, Divergence] = {}
    for found in divergences:
        told.setdefault(found.key, found)
    placed = list(enumerate(_with_lone(rows, told)))
    limit = MAX_ROWS
    while True:
        chosen = _thinned(placed, told, limit)
        data = packed(_columns(chosen, told, first))
        if len(data) <= most or len(chosen) <= 100:
            return Payload(data, len(chosen), len(placed))
        limit = len(chosen) // 2


def packed_values(views: Iterable[ValueView], most: int = MAX_VALUES) -> str:
    """Pack the values of records, the first ones that fit in `most` bytes; empty for none."""
    kept = [(view.key, _values(view)) for view in views]
    while kept:
        data = packed(dict(kept))
        if len(data) <= most:
            return data
        kept = kept[: len(kept) * 2 // 3]
    return ""


def packed(content: Any) -> str:
    """Return base64 of zlib of JSON."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def judged(rows: Sequence[Row], divergences: Sequence[Divergence]) -> list[Row]:
    """Return the rows with `diverged` meaning what the verdict means: not where an excess was excused."""
    keys = {found.key for found in divergences}
    return [row if row.diverged == (row.key in keys) else replace(row, diverged=row.key in keys) for row in rows]


def _with_lone(rows: Sequence[Row], told: dict[str, Divergence]) -> list[Row]:
    """The rows, and one for each divergence that none of them measured, in the order of execution."""
    known = {row.key for row in rows}
    lone = [
        Row(d.site, d.coords, d.kind, d.order, d.error if d.metric == "rel_l2" else math.nan, d.floor, shape=d.shape)
        for key, d in told.items()
        if key not in known
    ]
    return sorted([*rows, *lone], key=lambda row: row.order) if lone else list(rows)


def _thinned(placed: Sequence[tuple[int, Row]], told: dict[str, Divergence], limit: int) -> list[tuple[int, Row]]:
    """At most about `limit` rows with their places: diverged ones first in line, the others evenly."""
    if len(placed) <= limit:
        return list(placed)
    diverged = [pair for pair in placed if pair[1].key in told][: limit // 2]
    others = [pair for pair in placed if pair[1].key not in told]
    step = max(1, -(-len(others) // max(1, limit - len(diverged))))
    return sorted(diverged + others[::step], key=lambda pair: pair[0])


def _columns(
    placed: Sequence[tuple[int, Row]], told: dict[str, Divergence], first: Divergence | None
) -> dict[str, Any]:
    words: dict[str, int] = {}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    rows = [row for _, row in placed]
    said = [told.get(row.key) for row in rows]
    columns: dict[str, list[Any]] = {
        "order": [position for position, _ in placed],
        "site": [word(clip(row.site, 160)) for row in rows],
        "coords": [word(coords_text(row.coords)) for row in rows],
        "kind": [word(clip(row.kind, 24)) for row in rows],
        "error": [_short(row.error) for row in rows],
        "floor": [_short(row.floor) for row in rows],
        "max_abs": [_short(row.max_abs) for row in rows],
        "sqnr": [_short(row.sqnr_db) for row in rows],
        "isolated": [_short(row.isolated) for row in rows],
        "precise": [_short(row.precise) for row in rows],
        "over": [_short(row.over) for row in rows],
        "dtype": [word(_pair(row.dtype)) for row in rows],
        "shape": [word("×".join(map(str, row.shape))) for row in rows],
        "how": [word(clip(row.how, 24)) for row in rows],
        "port": [word(clip(row.port, 160)) for row in rows],
        "nonfinite": [word(_pair(row.nonfinite) if any(row.nonfinite) else "") for row in rows],
        "said": [word(_said(d) if d else "") for d in said],
        "flags": [
            (d is not None) + 2 * row.bitwise + 4 * row.estimated + 8 * (row.diverged and d is None)
            for row, d in zip(rows, said, strict=True)
        ],
    }
    start = next((i for i, row in enumerate(rows) if first is not None and row.key == first.key), -1)
    return {"words": list(words), "columns": columns, "first": start}


def _said(found: Divergence) -> str:
    """What a divergence says beyond its numbers: how it was seen, and its detail."""
    metric = "" if found.metric == "rel_l2" else clean(found.metric)
    tier = "" if found.tier == "run" else clean(found.tier)
    return clip(
        "; ".join(part for part in (metric, tier, clean(found.detail), *map(clean, found.locality)) if part), 240
    )


def _values(view: ValueView) -> dict[str, Any]:
    def table(values: Any) -> list[list[float | str | None]]:
        return [[_short(float(v)) for v in row] for row in values]

    return {
        "shape": list(view.shape),
        "range": [_short(v) for v in view.range],
        "counts": [list(view.reference_counts), list(view.port_counts)],
        "nonfinite": list(view.nonfinite),
        "axes": [[axis, step, [_short(v) for v in errors]] for axis, step, errors in view.axes],
        "worst": [[list(index), _exact(a), _exact(b)] for index, a, b in view.worst],
        "slice": {
            "name": view.slice_name,
            "origin": list(view.origin),
            "reference": table(view.reference),
            "port": table(view.port),
            "difference": table(view.difference),
        },
    }


def _short(value: float) -> float | str | None:
    """Three digits; nan becomes null and an infinity a word, since JSON has neither."""
    if math.isnan(value):
        return None
    return float(f"{value:.3g}") if math.isfinite(value) else str(value)


def _exact(value: float) -> float | str | None:
    return float(f"{value:.9g}") if math.isfinite(value) else _short(value)


def _pair(sides: tuple[object, object]) -> str:
    left, right = (clip(side, 24) for side in sides)
    return left if left == right else f"{left} → {right}"
