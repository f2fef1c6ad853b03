"""Each site alone: the port in float64, continuing from the reference's value after each record, so that every difference is the fault of its own site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from parity.align.pieces import fit_calls
from parity.align.results import fit_results
from parity.align.traces import align
from parity.case import Case, Setting
from parity.compare.benign import excuse_masks, excuse_rounding
from parity.compare.constants import excuse_constants
from parity.compare.floors import Floors
from parity.compare.measure import measure
from parity.compare.verdict import judge
from parity.errors import SideError
from parity.locate.first import without_echoes
from parity.result import Divergence, Row
from parity.run.side import Inject, Runs, grafting, run_side

Relabel = Mapping[str, Callable[[Tensor], Tensor]]


def isolate_sites(
    case: Case,
    setting: Setting,
    runs: Runs,
    limits: Floors,
    rows: list[Row],
    inject: Inject | None,
    order: Relabel,
    notes: list[str],
) -> tuple[list[Divergence], list[Row]]:
    """Compare each site alone: the port in float64, continuing from the reference's float64 value after each record."""
    precise = runs.precise
    assert precise is not None
    try:
        port = run_side(
            case, "port", setting, inject=inject, upcast=True, override=grafting(precise, order, runs.pieces)
        ).trace
    except SideError as error:
        notes.append(f"no isolation: {error}")
        return [], rows
    port = fit_results(precise, port, case.relax)
    if runs.pieces:
        port, _ = fit_calls(precise, port)
    runs.isolated = port
    alignment = align(precise, port, allowed=case.allow_unaligned)
    own = measure(alignment.pairs, precise, port, limits)
    own = [replace(r, diverged=False) if r.site in order else r for r in own]
    own, _ = excuse_masks(own, alignment, precise, port)
    own = excuse_rounding(own, alignment, precise, port, setting.dtype, notes)
    deployed = {row.key: row for row in rows}
    own = excuse_constants(own, deployed, precise, port, case.rounded, setting.dtype, notes)
    found = judge(own, replace(alignment, missing=(), extra=()), precise, port, tier="isolation")
    alone = {row.key: row.error for row in own}
    return without_echoes(found), [replace(row, isolated=alone.get(row.key, float("nan"))) for row in rows]
