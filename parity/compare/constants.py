"""Constants that one side rounds where the other does not: in a half-precision deployment, a difference in float64 that is no other formula.

A model that is converted rounds what it holds: a table of frequencies, a scale, weights with a norm folded into them. The other side computes the same
constant, or rounds its factors; in float64 the two differ by that rounding, and as deployed they do not. Taken back only where the deployed values agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.align.by_values import module_of
from parity.case import Rounded
from parity.compare.benign import is_rounding
from parity.compare.floors import is_low_precision
from parity.result import Row
from parity.trace import Trace

_LEAST = 5e-3  # units: a constant among many that mix with it leaves little
_PURE = 1e-3  # share of a difference that a single factor may leave unexplained


def excuse_constants(
    rows: Sequence[Row],
    deployed: Mapping[str, Row],
    reference: Trace,
    port: Trace,
    rounded: Rounded | None,
    dtype: torch.dtype,
    notes: list[str],
) -> list[Row]:
    """Take back divergences of isolation that are constants rounded at another place. deployed: the rows of the run itself, by key."""
    if rounded is None or not is_low_precision(dtype):
        return list(rows)
    kept, start = [], 0
    for row in sorted(rows, key=lambda row: row.order):
        before, start = start, row.order
        run = deployed.get(row.key)
        if not row.diverged or run is None or run.diverged or run.error != run.error:
            kept.append(row)
            continue
        stretch = reference.records[before : row.order + 1]
        other = any({module_of(record), record.module} & rounded.weights for record in stretch)
        r, p = reference.tensor(row.key), port.tensor(row.key)
        if (other and row.error <= run.floor) or (rounded.tables and _is_constant(r, p, dtype)):
            notes.append(
                f"{row.site}: a constant that one side rounds to {str(dtype).removeprefix('torch.')} and the other does not"
            )
            row = replace(row, diverged=False, how="rounding")
        kept.append(row)
    return kept


def _is_constant(r: Tensor | None, p: Tensor | None, dtype: torch.dtype) -> bool:
    if r is None or p is None or r.shape != p.shape or not r.is_floating_point():
        return False
    return is_rounding(r, p, dtype, least=_LEAST) or is_one_factor(r, p, dtype)


def is_one_factor(r: Tensor, p: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether `p` is `r` times one number that is 1 up to one rounding to `dtype`. An eps is none: its factor differs from row to row."""
    r, p = r.detach().double().flatten(), p.detach().double().flatten()
    size = float(r.dot(r))
    if not size > 0 or not bool(torch.isfinite(p).all()):
        return False
    factor = float(r.dot(p)) / size
    rest, whole = (p - factor * r).norm(), (p - r).norm()
    return abs(factor - 1) <= torch.finfo(dtype).eps / 2 and bool(rest <= _PURE * whole)
