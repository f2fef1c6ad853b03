"""Verification: the whole port runs again with the edits undone at their lines, and every site is compared with the reference's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parity.align.pieces import fit_calls
from parity.align.traces import align
from parity.case import Case, Setting
from parity.compare.floors import Floors
from parity.compare.measure import measure
from parity.compare.verdict import judge
from parity.diagnose.correspondence import Layouts
from parity.diagnose.prints import COARSE
from parity.diagnose.search import Explanation
from parity.diagnose.undo import Interposed, Undo, undo_of
from parity.errors import SideError
from parity.run.side import Inject, Runs, reseating, run_side


@dataclass(frozen=True)
class Verified:
    """How many sites were compared with the edits undone, and how often they were undone."""

    sites: int
    times: int
    once: bool = False  # only in the call where the edit was found: other calls of the line are right


def verify(
    case: Case, setting: Setting, runs: Runs, explanation: Explanation, inject: Inject | None, limits: Floors | None
) -> Verified | None:
    """Run the port in float64 with the edits undone; None unless every site then matches."""
    undos = undos_of(explanation)
    if not undos or limits is None or runs.precise is None:
        return None
    try:
        constants = _constants(case, setting, runs, undos)
    except SideError:
        return None
    for once in (False, True):
        found = _matches(case, setting, runs, Interposed(undos, constants=constants, once=once), inject, limits)
        if found is not None:
            return replace(found, once=once)
    return None


def _matches(
    case: Case, setting: Setting, runs: Runs, mode: Interposed, inject: Inject | None, limits: Floors
) -> Verified | None:
    """Run the port with edits undone; None unless every site matches."""
    assert runs.precise is not None
    override = reseating(case, runs.precise)
    try:
        port = run_side(case, "port", setting, inject=inject, upcast=True, override=override, around=mode).trace
    except SideError:
        return None
    if mode.times == 0:
        return None
    if runs.pieces:
        port, _ = fit_calls(runs.precise, port)
    alignment = align(runs.precise, port, case.names, case.allow_unaligned)
    rows = measure(alignment.pairs, runs.precise, port, limits)
    wrong = [d for d in judge(rows, alignment, runs.precise, port) if not d.error <= COARSE]
    return None if wrong else Verified(len(alignment.pairs), mode.times)


def undos_of(explanation: Explanation) -> tuple[Undo, ...] | None:
    """Return the undoing of every edit; None when one cannot be said."""
    reference, port = explanation.graphs
    layouts = Layouts(reference, port, COARSE)
    found: list[Undo] = []
    for edit in explanation.edits:
        undos = undo_of(edit, reference, port, layouts)
        if undos is None:
            return None
        found += undos
    return tuple(found)


def _constants(case: Case, setting: Setting, runs: Runs, undos: tuple[Undo, ...]) -> dict:  # type: ignore[type-arg]
    """Return what the reference's operations were given at the places that the undoing needs, call by call."""
    wanted = [s.reading for u in undos for s in u.sources if s.side == "reference"]
    if not wanted or runs.precise is None:
        return {}
    mode = Interposed((), wanted)
    run_side(case, "reference", setting, upcast=True, override=reseating(case, runs.precise), around=mode, keep=False)
    return mode.read
