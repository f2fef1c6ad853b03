"""What holds for traces that anybody made, where no case says more: a result has its shape and its kind of numbers, and it is there.

A run under parity says what it returned and what its case allows. Plain traces do not: here the last record of the reference, and what is
called an output, is the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.align.pairs import Alignment, Pair
from parity.boundary.text import one_line
from parity.errors import CaseError
from parity.result import Divergence, Row
from parity.trace import ENDS, Record, Trace
from parity.trace.names import NameMap
from parity.trace.rules import UNFIT

NOTHING = "no compared record has an element: nothing was compared"
# Others may be held as other numbers: ids, masks.
_VALUES = frozenset({"activation", "output", "latent", "frame", "gradient", "weight"})


def refuse_unfit(alignment: Alignment, port: Trace) -> None:
    """Raise CaseError for a rule of a name map whose layout or parts do not fit the tensor that it names."""
    for pair in alignment.pairs:
        if pair.target is None or not (pair.target.layout or pair.target.of > 1) or pair.how != "map":
            continue
        value = torch.empty(pair.port.shape, device="meta")
        try:
            pair.target.to_reference(value)
        except Exception as error:  # einops and torch each have their own
            what = f"layout {pair.target.layout!r}" if pair.target.layout else "split"
            text = f"name map: the {what} does not fit {pair.port.site!r} {list(pair.port.shape)}: "
            raise CaseError(
                text + one_line(str(error).strip().splitlines()[-1] if str(error).strip() else "", 120)
            ) from None


def refuse_unfit_records(port: Trace) -> None:
    """Raise CaseError for a layout of a name map that did not fit a tensor while the port was recorded."""
    for record in port:
        if record.layout.endswith(UNFIT):
            text = f"name map: the layout {record.layout.removesuffix(UNFIT)!r} does not fit"
            raise CaseError(f"{text} {(record.origin or record.site)!r} {list(record.shape)}")


def idle_rules(names: NameMap | None, reference: Trace, port: Trace) -> list[str]:
    """Return a note for each rule that matches nothing. Raises CaseError when none of them does: the map is meant for other traces."""
    if names is None or not names.rules or names.inferred:
        return []
    idle = names.idle({r.origin or r.site for r in port} | set(port.sites()) | names.asked, set(reference.sites()))
    if len(idle) >= len(names.rules):
        raise CaseError(
            f"name map: no rule matches a site of these traces ({one_line(idle[0], 80)!r}): is it meant for others?"
        )
    return [f"name map: {one_line(pattern, 80)!r} matches no site" for pattern in idle[:20]]


def judge_plain(rows: Sequence[Row], alignment: Alignment) -> tuple[list[Row], list[Divergence]]:
    """Judge by the rules of plain traces: returns the rows, and divergences of dtype that no number shows."""
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    last = max((row.order for row in rows), default=-1)
    judged, found = [], []
    for row in rows:
        pair = pairs[row.key]
        if row.how == "broadcast" and (row.order == last or pair.reference.kind in ("output", "frame")):
            row = replace(row, diverged=True)
        if not row.diverged and not same_numbers(pair.reference, pair.port, row.kind):
            found.append(_of_dtype(row, pair))
        judged.append(row)
    return judged, found


def lost_results(alignment: Alignment, reference: Trace, port: Trace, named: bool) -> tuple[str, ...]:
    """Return the reference's results that have no partner: what is an output by name, and (named: False) its last record."""
    paired = {pair.reference.key for pair in alignment.pairs} | alignment.outside
    told = [
        r for r in reference if r.role not in ENDS or port.manifest.returned
    ]  # not every recorder looks at what is returned
    last = [] if named or reference.manifest.order_assumed else told[-1:]
    ends = [r for r in reference if r.kind == "output" and r.role not in ("return", "after")]
    lost = {r.site: None for r in (*ends, *last) if r.key not in paired and r.site not in alignment.allowed}
    return tuple(lost)


def all_empty(alignment: Alignment) -> bool:
    """Tell whether nothing that was compared has an element."""
    return all(math.prod(pair.reference.shape) == 0 for pair in alignment.pairs)


def same_numbers(reference: Record | Tensor, port: Record | Tensor, kind: str) -> bool:
    """Tell whether two dtypes hold numbers of one class, where that tells more than the values: kinds that are values, and what is empty."""
    if kind not in _VALUES and 0 not in reference.shape:
        return True
    return _numbers(reference.dtype) == _numbers(port.dtype)


def _numbers(name: str | torch.dtype) -> str:
    dtype: torch.dtype = getattr(torch, name) if isinstance(name, str) else name
    if dtype.is_complex or dtype.is_floating_point:
        return "complex" if dtype.is_complex else "float"
    return "bool" if dtype is torch.bool else "whole"


def _of_dtype(row: Row, pair: Pair) -> Divergence:
    return Divergence(
        site=row.site,
        coords=dict(row.coords),
        kind=row.kind,
        metric="dtype",
        error=row.error,
        floor=0.0,
        order=row.order,
        module=pair.reference.module,
        detail=f"{row.dtype[0]} in the reference, {row.dtype[1]} in the port",
        shape=row.shape,
        port=row.port,
    )
