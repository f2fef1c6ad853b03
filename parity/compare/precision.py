"""Precision boundaries of a half-precision run: what noise hides and float64 takes away, and what is a bug nevertheless.

Two rules. A value that the reference keeps in float32 and the port in half precision is a boundary that moved (BUGS.md N4, W11), unless the case allows it.
And the arithmetic of a solver is a handful of elementwise operations: from the reference's own inputs it must give the reference's own bits (T9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from parity.align.traces import align
from parity.case import Case, Setting
from parity.compare.floors import UNIT, is_low_precision
from parity.compare.measure import worst
from parity.errors import SideError, caught
from parity.result import Divergence, Row
from parity.run.side import Inject, Runs, grafting, run_side
from parity.trace import ENDS, Trace

_EXACT_KINDS = frozenset({"latent"})
_FEW = 0.01  # share of elements that may differ: a tie rounded the other way


def moved_boundaries(rows: Sequence[Row], case: Case, setting: Setting, reference: Trace) -> list[Divergence]:
    """Return records that the reference keeps in a finer dtype than the port, in a half-precision run."""
    if not is_low_precision(setting.dtype):
        return []
    found = []
    for row in rows:
        left, right = row.dtype
        coarser = UNIT.get(right, 0.0) > UNIT.get(left, 1.0)
        record = reference.get(row.key)
        if record is not None and record.role in ENDS:
            continue  # what is returned has a rule of its own
        if coarser and row.kind != "frame" and not any(re.fullmatch(p, row.site) for p in case.allow_dtypes):
            found.append(
                Divergence(
                    site=row.site,
                    coords=row.coords,
                    kind=row.kind,
                    metric="dtype",
                    error=row.error,
                    floor=0.0,
                    order=row.order,
                    tier="precision",
                    module=record.module if record is not None else "",
                    detail=f"{left} in the reference, {right} in the port",
                    shape=row.shape,
                )
            )
    return found


def inexact_arithmetic(
    case: Case, setting: Setting, runs: Runs, inject: Inject | None, order: Mapping[str, object]
) -> list[Divergence]:
    """Return half-precision latents that are not the reference's bits although they were computed from the reference's values."""
    kinds = [
        r
        for r in runs.reference
        if r.kind in _EXACT_KINDS and r.dtype in ("bfloat16", "float16") and r.role == "function"
    ]
    if not is_low_precision(setting.dtype) or not kinds or order:
        return []
    try:
        port = run_side(case, "port", setting, inject=inject, override=grafting(runs.reference)).trace
    except SideError as failure:
        caught("the run for solver arithmetic", failure)
        return []
    found = []
    for pair in align(runs.reference, port).pairs:
        record = pair.reference
        if record.kind not in _EXACT_KINDS or record.role != "function" or record.dtype not in ("bfloat16", "float16"):
            continue
        r, p = runs.reference.tensor(record.key), port.tensor(record.key)
        if r is None or p is None or r.shape != p.shape:
            continue
        share = float((r != p).double().mean())
        if share > _FEW:
            index, left, right = worst(r, p)
            error = float((p.double() - r.double()).norm() / (r.double().norm() + 1e-300))
            detail = f"{share:.0%} of the elements differ although every input is the reference's: other arithmetic in {record.dtype}"
            found.append(
                Divergence(
                    record.site, dict(record.coords), record.kind, "bitwise", error, 0.0, record.order, "precision", record.module, detail,
                    index, left, right, record.shape,
                )
            )  # fmt: skip
    return found
