"""Two traces without a second run: where noise ends and a bug begins.

No floor is measured, so the limit of a record is read off the run itself. Noise grows smoothly along the execution; a bug is a jump over the running envelope of what
came before it. The assumptions are stated in docs/floors.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.align.pairs import Alignment, Pair
from parity.compare.floors import FIXED, UNIT
from parity.result import Row
from parity.trace import Record, Trace

JUMP = 8.0  # times the envelope: one step of a right port may lose three bits on what came before it
_RECENT, _UPPER = 64, 0.75  # the envelope: the upper quartile of so many errors, so that no single one lifts it
DRIFT = {"float64": 1e-6, "float32": 2e-3, "float16": 5e-2, "bfloat16": 1e-1}  # without a jump, up to here
_FEW_VALUES = 16  # fewer different values are on any grid


def judge_onset(
    rows: Sequence[Row], alignment: Alignment, reference: Trace, port: Trace
) -> tuple[list[Row], tuple[str, ...]]:
    """Give each floating row the limit that its precision and the errors before it allow. Returns the rows, and a note on drift."""
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    coarse = _of_weights(reference, port)
    recent: deque[float] = deque(maxlen=_RECENT)
    judged: list[Row] = []
    drifted: tuple[Row, float] | None = None
    for row in rows:
        pair = pairs[row.key]
        if not pair.reference.is_float or pair.reference.kind == "frame":
            judged.append(row)
            continue
        coarse = max(coarse, _precision(pair, reference, port), key=lambda name: UNIT.get(name, 0.0))
        least, most = max(row.floor, FIXED.get(coarse, 2e-2)), DRIFT.get(coarse, 1e-1)
        limit = max(least, min(JUMP * _envelope(recent), most))
        by_error = row.diverged and row.error > row.floor
        wrong = row.error > limit if by_error or not row.diverged else True
        judged.append(replace(row, floor=limit, diverged=wrong))
        if row.error <= limit:
            if row.error > 0:
                recent.append(row.error)
            if row.error > least:
                drifted = (row, least)
    return judged, _drift_note(drifted, judged)


def _envelope(recent: Sequence[float]) -> float:
    return sorted(recent)[int(_UPPER * (len(recent) - 1))] if recent else 0.0


def _drift_note(drifted: tuple[Row, float] | None, rows: Sequence[Row]) -> tuple[str, ...]:
    if drifted is None:
        return ()
    last, least = drifted
    start = next(row for row in rows if math.isfinite(row.error) and row.error > least and not row.diverged)
    grown = f"the error passes {least:.0e} at {start.key} and is {last.error:.1e} at {last.key}"
    return (f"drift: {grown}, without a jump: noise that grows, not one wrong step",)


def _of_weights(reference: Trace, port: Trace) -> str:
    """Return the coarser dtype of the weights where the two sides hold them in two: that rounding is noise from the start."""
    names = []
    for trace in (reference, port):
        dtypes = {one.dtype for one in trace.manifest.parameters.values()} & UNIT.keys()
        names.append(max(dtypes, key=lambda name: UNIT[name], default=""))
    return max(names, key=lambda name: UNIT.get(name, 0.0)) if names[0] != names[1] and all(names) else "float64"


def _precision(pair: Pair, reference: Trace, port: Trace) -> str:
    """Return the coarsest precision that a pair of values was computed in: their dtypes, and the grid on which they lie."""
    found = [_grid(pair.reference, reference), _grid(pair.port, port)]
    return max(found, key=lambda name: UNIT.get(name, 0.0))


def _grid(record: Record, trace: Trace) -> str:
    """Return bfloat16 or float16 for wider values all of which such numbers can hold; else the dtype."""
    if record.dtype not in ("float32", "float64"):
        return record.dtype
    value = trace.tensor(record.key)
    if value is None:
        stats = record.stats
        if stats is None or stats.min == stats.max:
            return record.dtype
        seen = torch.tensor([stats.min, stats.max], dtype=torch.float64)
    else:
        seen = value.detach().flatten()[:4096].double()
        if len(torch.unique(seen)) < _FEW_VALUES:
            return record.dtype
    for name in ("bfloat16", "float16"):
        if _lies_on(seen, getattr(torch, name)):
            return name
    return record.dtype


def _lies_on(values: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether values are numbers of a narrow dtype, and not such as every dtype has (whole ones, eighths)."""
    plain = bool((values * 8 == (values * 8).round()).all())
    return not plain and torch.equal(values.to(dtype).double(), values)
