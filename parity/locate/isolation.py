"""Each site alone: the port in float64, continuing from the reference's value after each record, so that every difference is the fault of its own site.

What refuses float64 computes in float32 there, with the limit of float32; what refuses that, too, is not judged alone, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parity.align.pairs import Alignment
from parity.align.pieces import fit_calls
from parity.align.results import fit_results
from parity.align.traces import align
from parity.case import Case, Held, Setting
from parity.compare.benign import excuse_masks, excuse_rounding
from parity.compare.constants import excuse_constants
from parity.compare.floors import FACTOR, FIXED, ROUNDOFF, Floors
from parity.compare.measure import measure
from parity.compare.verdict import judge
from parity.errors import SideError, caught
from parity.locate.first import without_echoes
from parity.result import Divergence, Row
from parity.run.double import run_double
from parity.run.side import Inject, Runs, grafting
from parity.trace import Record, Trace

Relabel = Mapping[str, Callable[[Tensor], Tensor]]
_SHOWN = 8  # sites in the result


@dataclass(frozen=True)
class Isolated:
    """What isolation found. case: with the modules of the port that refuse float64 held back. isolation: how far it could go, as in the result."""

    case: Case
    rows: list[Row]
    divergences: list[Divergence] = field(default_factory=list)
    isolation: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def isolate_sites(
    case: Case, setting: Setting, runs: Runs, limits: Floors, rows: list[Row], inject: Inject | None, order: Relabel
) -> Isolated:
    """Compare each site alone. rows: of the deployed run; they come back with the error of their site alone."""
    precise = runs.precise
    assert precise is not None
    graft = grafting(precise, order, runs.pieces)
    try:
        case, run = run_double(case, "port", setting, inject=inject, override=graft)
    except SideError as error:
        caught("isolation", error)
        reason = f"no isolation: {error}"
        return Isolated(case, rows, [], {"level": "none", "reason": reason, "sites": []}, (reason,))
    port = fit_results(precise, run.trace, case.relax)
    if runs.pieces:
        port, _ = fit_calls(precise, port)
    runs.isolated = port
    notes: list[str] = []
    alignment = align(precise, port, allowed=case.allow_unaligned)
    own = measure(alignment.pairs, precise, port, limits)
    held = (*case.reference.held.values(), *case.port.held.values())
    own, unseen = _without_held(own, alignment, held)
    own = [replace(r, diverged=False) if r.site in order else r for r in own]
    own, _ = excuse_masks(own, alignment, precise, port)
    own = excuse_rounding(own, alignment, precise, port, setting.dtype, notes)
    deployed = {row.key: row for row in rows}
    own = excuse_constants(own, deployed, precise, port, case.rounded, setting.dtype, notes)
    found = judge(own, replace(alignment, missing=(), extra=()), precise, port, tier="isolation")
    alone = {row.key: row.error for row in own}
    rows = [replace(row, isolated=alone.get(row.key, float("nan"))) for row in rows]
    said = tuple(_reasons(held))
    return Isolated(case, rows, without_echoes(found), _told(held, unseen, len(own)), (*notes, *said))


def _told(held: Sequence[Held], unseen: Sequence[str], seen: int) -> dict[str, Any]:
    """Return the level, the reason, and the sites that could not be judged alone."""
    level = "full" if not unseen else "partial" if seen else "none"
    return {"level": level, "reason": "; ".join(_reasons(held)), "sites": list(unseen[:_SHOWN]), "count": len(unseen)}


def _reasons(held: Sequence[Held]) -> list[str]:
    """Say what refuses float64, modules of one side with one reason together."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in held:
        key = (one.side, str(one.dtype).removeprefix("torch."), one.reason)
        groups.setdefault(key, []).append(one.site or "the model")
    return [
        f"{side}: {sites[0]}{f' and {len(sites) - 1} more' if len(sites) > 1 else ''} cannot run in float64 ({reason}), in {dtype} instead"
        for (side, dtype, reason), sites in groups.items()
    ]


def _without_held(rows: Sequence[Row], alignment: Alignment, held: Sequence[Held]) -> tuple[list[Row], tuple[str, ...]]:
    """Give what computed in float32 its limit, and take out what computed in half precision. Returns the rows, and the sites taken out."""
    if not held:
        return list(rows), ()
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    kept: list[Row] = []
    unseen: dict[str, None] = {}
    for row in rows:
        pair = pairs[row.key]
        sides = (("reference", pair.reference), ("port", pair.port))
        dtypes = {one.dtype for one in held for side, record in sides if one.side == side and _made_in(record, one)}
        if dtypes - {torch.float32}:
            unseen[row.site] = None
        elif dtypes and row.diverged and row.error > row.floor:
            limit = max(row.floor, ROUNDOFF)
            kept.append(replace(row, floor=limit, diverged=row.error > limit))
        else:
            kept.append(row)
    return kept, tuple(unseen)


def _made_in(record: Record, held: Held) -> bool:
    """Tell whether a record was computed by the own code of a module that is held back. A root has no path, and one of two names in records."""
    return record.module == held.site or (not held.site and record.module in ("model", "root"))


def of_held(reference: Trace, known: Mapping[str, Held]) -> dict[str, float]:
    """Return the error that is taken for the reference's own where its run in float64 computed in half precision, by key."""
    low = [one for one in known.values() if one.dtype in (torch.bfloat16, torch.float16)]
    return {
        record.key: FIXED[str(one.dtype).removeprefix("torch.")] / FACTOR
        for record in reference
        for one in low
        if record.is_float and _made_in(record, one)
    }
