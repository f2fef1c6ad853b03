"""The table of sites as data for the page's script: columns, compressed, in base64, so that nothing in it is HTML."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parity.report.wording import clip, coords_text
from parity.result import Row

MAX_ROWS = 60_000
MAX_BYTES = 700_000


@dataclass(frozen=True)
class Payload:
    """`data` is base64 of zlib of JSON; `shown` of `total` rows are in it (diverged ones first, then every k-th)."""

    data: str
    shown: int
    total: int


def payload(rows: Sequence[Row], most: int = MAX_BYTES) -> Payload:
    """Pack the rows, thinned until they fit in `most` bytes."""
    limit = MAX_ROWS
    while True:
        chosen = _thinned(rows, limit)
        packed = zlib.compress(json.dumps(_columns(chosen), separators=(",", ":"), allow_nan=False).encode(), 9)
        data = base64.b64encode(packed).decode("ascii")
        if len(data) <= most or len(chosen) <= 100:
            return Payload(data, len(chosen), len(rows))
        limit = len(chosen) // 2


def _thinned(rows: Sequence[Row], limit: int) -> list[tuple[int, Row]]:
    """At most about `limit` rows with their places: diverged ones first in line, the others evenly."""
    placed = list(enumerate(rows))
    if len(placed) <= limit:
        return placed
    diverged = [pair for pair in placed if pair[1].diverged][: limit // 2]
    others = [pair for pair in placed if not pair[1].diverged]
    step = max(1, -(-len(others) // max(1, limit - len(diverged))))
    return sorted(diverged + others[::step], key=lambda pair: pair[0])


def _columns(placed: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    words: dict[str, int] = {}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    rows = [row for _, row in placed]
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
        "nonfinite": [word(_pair(row.nonfinite) if any(row.nonfinite) else "") for row in rows],
        "flags": [row.diverged + 2 * row.bitwise + 4 * row.estimated for row in rows],
    }
    return {"words": list(words), "columns": columns}


def _short(value: float) -> float | str | None:
    """Three digits; nan becomes null and an infinity a word, since JSON has neither."""
    if math.isnan(value):
        return None
    return float(f"{value:.3g}") if math.isfinite(value) else str(value)


def _pair(sides: tuple[object, object]) -> str:
    left, right = (clip(side, 24) for side in sides)
    return left if left == right else f"{left} → {right}"
