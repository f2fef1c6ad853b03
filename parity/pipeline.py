"""One case through all stages: run, align, compare, isolate, locate, drill down, diagnose. The only place that knows their order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parity.align.listed import aligned
from parity.align.pairs import Alignment
from parity.align.pieces import Piece, fit_calls
from parity.align.results import fit_results
from parity.align.traces import align
from parity.align.windows import within_windows
from parity.case import Case, Fault, Held, Setting, Variation
from parity.compare import floors as floors_
from parity.compare.benign import excuse_masks, excuse_permutations, excuse_rounding, excuse_roundoff
from parity.compare.floors import Floors
from parity.compare.foreign import (
    carrying,
    deployed_in,
    half_of,
    of_one_case,
    order_notes,
    other_dtypes,
    results_agree,
    unmeasured_notes,
)
from parity.compare.gradients import heal_gradients
from parity.compare.invariants import TIER, broken
from parity.compare.measure import measure, own_errors, own_levels
from parity.compare.noise import excuse_noise
from parity.compare.onset import judge_onset
from parity.compare.plain import NOTHING, all_empty, idle_rules, judge_plain, lost_results, refuse_unfit
from parity.compare.precision import inexact_arithmetic, moved_boundaries
from parity.compare.returned import is_empty, judge_results, lone_results
from parity.compare.static import TIER as STATIC
from parity.compare.static import changed_weights, static_divergences, with_static_cause
from parity.compare.verdict import cover, judge, lone_states
from parity.compare.veto import veto
from parity.diagnose import diagnose as diagnose_values
from parity.diagnose.explain import explain
from parity.diagnose.gather import evidence_of
from parity.errors import SideError, caught, collecting
from parity.locate.conclude import EMPTY, conclude
from parity.locate.isolation import isolate_sites, of_held
from parity.locate.listing import refuse_unknown_site
from parity.result import Divergence, Result, Row
from parity.run.double import run_double, with_held
from parity.run.side import Runs, grafting, reseating, run_side
from parity.trace import Trace
from parity.trace.names import NameMap

JOINED = "joined before they were compared"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What does not depend on the port: the reference's runs and the limits that follow. Made once for many faults."""

    reference: Trace
    precise: Trace | None  # in float64, each step from the deployed run's state
    floors: Floors
    limits: Floors | None  # of isolation: how a site answers to weights that move by one unit of roundoff
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    held: Mapping[str, Held] = field(default_factory=dict)  # modules that refuse float64

    def with_noise(self, noise: Mapping[str, float]) -> Prepared:
        """Return the same with what a case declares that its port moves values by."""
        if not noise:
            return self
        limits = replace(self.limits, noise=noise) if self.limits is not None else None
        return replace(self, floors=replace(self.floors, noise=noise), limits=limits)


def prepare(
    case: Case,
    setting: Setting,
    *,
    isolate: bool = True,
    fixed: float | None = None,
    say: Progress = lambda text: None,
    precise: Trace | None = None,
) -> Prepared:
    """Run the reference as deployed, in float64 (unless its trace is given: `precise`), and in float64 with moved weights."""
    say("reference")
    run = run_side(case, "reference", setting, weights=True)
    reference = run.trace
    say("floors")
    try:
        if precise is None:
            case, double = run_double(case, "reference", setting, override=reseating(case, reference))
            precise = double.trace
    except SideError as error:
        caught("the float64 run of the reference", error)
        said = (f"no float64 run of the reference, fixed tolerances instead: {error}",)
        return Prepared(reference, None, Floors(fixed=fixed), None, run.weights, said)
    records = {record.key: record for record in reference}
    own = own_errors(reference, precise) | of_held(reference, case.reference.held), own_levels(reference, precise)
    floors = Floors(fixed=fixed) if fixed is not None else floors_.measured(own[0], records, levels=own[1])
    limits = None
    if isolate:
        moved = run_side(case, "reference", setting, upcast=True, jitter=True, override=grafting(precise)).trace
        limits = floors_.measured(own_errors(precise, moved), {r.key: r for r in precise}, least=floors_.ISOLATION)
    return Prepared(reference, precise, floors, limits, run.weights, held=case.reference.held)


@dataclass(frozen=True)
class Terms:
    """What is said of a comparison beforehand: the name map, sites that may stay alone, relaxed rules, the words of masks, the deployed dtype.

    by_value: also pair what names do not. foreign: two traces that no case binds. open: nobody gave the pairs: what follows them may veto them.
    """

    names: NameMap | None = None
    allowed: Mapping[str, str] = field(default_factory=dict)
    relax: Mapping[str, str] = field(default_factory=dict)
    axis_words: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    deployed: str = ""
    by_value: bool = False
    foreign: bool = False
    open: bool = False


@dataclass(frozen=True)
class Compared:
    """Two traces after all stages that need no model. order: how the port orders each site that is excused as permuted."""

    reference: Trace
    port: Trace  # joined
    pieces: Mapping[str, Piece]
    alignment: Alignment
    rows: list[Row]
    divergences: list[Divergence]
    lone: list[Divergence]
    order: Mapping[str, Callable[[Tensor], Tensor]]
    notes: list[str]
    scaled: bool = False


def compare_stages(reference: Trace, port: Trace, floors: Floors, terms: Terms) -> Compared:
    """Take two traces through all stages that need no model: constants, pieces, alignment, numbers, excuses, results, gradients."""
    sides = ("reference", reference), ("port", port)
    notes = [f"{trace.manifest.side or side}: {note}" for side, trace in sides for note in trace.manifest.notes]
    port, pieces = fit_calls(reference, fit_results(reference, port, terms.relax))
    if pieces:
        notes.append(f"{len(pieces)} calls of the port are parts of the reference's, or the reverse: {JOINED}")
    alignment, ends, said = lone_results(
        align(reference, port, terms.names, terms.allowed, by_value=terms.by_value), reference, port, terms.relax
    )
    notes += said
    if terms.foreign:
        refuse_unfit(alignment, port)
        alignment, windows = within_windows(alignment, reference, port)
        notes += [*windows, *idle_rules(terms.names, reference, port)]
    rows = measure(alignment.pairs, reference, port, floors)
    if terms.foreign and floors.fixed is None and not floors.absolute and not floors.measured:
        rows, drift = judge_onset(rows, alignment, reference, port)
        notes += drift
    if terms.open:
        vetoed = veto(rows, alignment, reference, port)
        rows, alignment = vetoed.rows, vetoed.alignment
        notes += vetoed.notes
    rows, same = excuse_masks(rows, alignment, reference, port)
    rows, order, benign = excuse_permutations(rows, alignment, reference, port)
    rows = excuse_rounding(rows, alignment, reference, port, half_of(terms.deployed), notes)
    rows, others = judge_results(rows, alignment, terms.relax, terms.deployed)
    if terms.foreign:
        rows, of_dtype = judge_plain(rows, alignment)
        others += of_dtype
    found = judge(rows, alignment, reference, port, axis_words=terms.axis_words)
    divergences = sorted([*found, *others, *ends], key=lambda d: d.order)
    divergences, healed, scaled = heal_gradients(divergences, rows, alignment, reference, port)
    notes += [*([healed] if healed else []), *alignment.notes, *same, *benign]
    if is_empty(alignment, terms.relax):
        notes.append(EMPTY)
    lone = lone_states(alignment, reference, port)
    return Compared(reference, port, pieces, alignment, rows, divergences, lone, order, notes, scaled)


def compare_traces(
    reference: Trace, port: Trace, terms: Terms, floors: Floors, allowance: float | None = None, label: str = "compare"
) -> Result:
    """Judge two traces that were made anywhere: the stages that need no model, then the causes that two values show.

    allowance: share of the reference's sites that may stay unaligned; half of them when not given, and any where what the runs return agrees.
    """
    ours = reference.manifest
    if of_one_case(reference, port):  # recorded under the case's map, with what the case says
        relax, allowed = {**ours.rules.get("relax", {}), **terms.relax}, ours.rules.get("unaligned", {})
        terms = replace(terms, allowed=allowed, relax=relax, by_value=False, deployed=ours.dtype)
    else:
        terms = replace(terms, deployed=deployed_in(reference, port), foreign=True, open=terms.names is None)
        terms = replace(terms, relax={**other_dtypes(reference, port), **terms.relax})
    seen = compare_stages(reference, port, floors, terms)
    coverage = cover(seen.alignment, reference, seen.port, seen.rows)
    notes = [*order_notes(reference, port), *unmeasured_notes(seen.rows), *seen.notes]
    divergences = [*seen.divergences, *seen.lone] if seen.divergences else []
    named = allowance is not None
    lost = () if of_one_case(reference, port) else lost_results(seen.alignment, reference, port, named)
    notes += [f"the result {site} of the reference has no partner" for site in lost]
    notes += [NOTHING] if all_empty(seen.alignment) else []
    if allowance is None:
        allowance = 1.0 if results_agree(seen.rows, seen.alignment) else 0.5
        allowance = 0.0 if of_one_case(reference, port) else allowance
    half = deployed_in(reference, port)
    changed = changed_weights(ours.parameters, port.manifest.parameters, getattr(torch, half) if half else None)
    constants = static_divergences(changed, reference)
    runs, whole = Runs(reference, seen.port), not lost and not all_empty(seen.alignment)
    result = conclude(seen.rows, divergences, [], coverage, runs, notes, allowance, constants, whole)
    if result.first is not None and result.first.tier != STATIC:
        evidence = evidence_of(result.first, seen.alignment, reference, seen.port)
        result = replace(result, causes=diagnose_values(evidence) if evidence is not None else ())
    result = with_static_cause(result, changed, len(ours.parameters))
    return replace(
        result,
        alignment=aligned(seen.rows),
        case=label,
        system=ours.system,
        command="parity align REFERENCE PORT",
    )


def run_case(
    case: Case,
    setting: Setting | None = None,
    *,
    fault: Fault | None = None,
    variation: Variation | None = None,
    isolate: bool = True,
    diagnose: bool = True,
    free: bool = True,
    fixed: float | None = None,
    allowance: float = 0.0,
    progress: Progress | None = None,
    prepared: Prepared | None = None,
    zoom: str = "",
    precise: Trace | None = None,
) -> tuple[Result, Runs]:
    """Run both sides of a case and judge the port.

    isolate: also compare every site alone, in float64 on the reference's values. free: also run the port without re-seating, for information.
    fixed: a relative tolerance instead of measured floors. allowance: share of the reference's sites that may stay unaligned.
    prepared: the reference's runs, when they were made before for the same case and setting; precise: the one in float64 alone.
    zoom: a site ("first" for the first divergence): list the operations of both sides that lead to it.
    Raises SideError when a side fails to build or run.
    """
    given = (fault, variation, isolate, diagnose, free, fixed, allowance, progress, prepared, zoom, precise)
    with collecting() as lost:
        result, runs = _run_case(case, setting, *given)
    return replace(result, caught=tuple(lost), notes=(*result.notes, *lost)), runs


def _run_case(
    case: Case,
    setting: Setting | None,
    fault: Fault | None,
    variation: Variation | None,
    isolate: bool,
    diagnose: bool,
    free: bool,
    fixed: float | None,
    allowance: float,
    progress: Progress | None,
    prepared: Prepared | None,
    zoom: str,
    precise: Trace | None,
) -> tuple[Result, Runs]:
    setting = setting or Setting(dtype=dtype_of_case(case, fault, variation))
    case = case.under(variation)
    inject = (fault.inject if fault else None) or (variation.inject if variation else None)
    say = progress or (lambda text: None)
    seconds: dict[str, float] = {}
    with _timed(seconds, "reference", say):
        prepared = prepared or prepare(case, setting, isolate=isolate, fixed=fixed, say=say, precise=precise)
    case = with_held(case, "reference", {**prepared.held, **case.reference.held})
    prepared = prepared.with_noise(case.noise)
    reference = carrying(prepared.reference, prepared.floors, prepared.limits, case)
    refuse_unknown_site(zoom, reference.sites())
    with _timed(seconds, "port", say):
        run = run_side(case, "port", setting, inject=inject, override=reseating(case, reference), weights=True)
    with _timed(seconds, "constants", say):
        changed = changed_weights(prepared.weights, run.weights, setting.dtype)
    runs = Runs(reference, run.trace, prepared.precise, recorded=run.trace)
    notes: list[str] = [
        *case.quirks,
        *prepared.notes,
        *(f"rule {rule!r} relaxed: {why}" for rule, why in case.relax.items()),
        *(f"declared noise: {site} may be off by {error:.1e}" for site, error in case.noise.items()),
    ]
    with _timed(seconds, "compare", say):
        seen = compare_stages(reference, run.trace, prepared.floors, terms_of(case, setting))
        runs.port, runs.pieces = seen.port, seen.pieces
        notes += seen.notes
        evidence = case.names.evidence()
        rows = [replace(row, how=evidence.get(row.site, row.how)) for row in seen.rows]
        divergences = seen.divergences
    local: list[Divergence] = []
    isolation: Mapping[str, Any] = {
        "level": "none",
        "reason": "not asked for" if not isolate else "; ".join(prepared.notes),
        "sites": [],
    }
    if isolate and prepared.limits is not None:
        with _timed(seconds, "isolate", say):
            alone = isolate_sites(case, setting, runs, prepared.limits, rows, inject, seen.order)
            case, local, rows, isolation = alone.case, alone.divergences, alone.rows, alone.isolation
            notes += alone.notes
            if seen.scaled:
                local = [d for d in local if d.kind != "gradient"]
            divergences = excuse_roundoff(divergences, rows, setting.dtype, notes)
    local += moved_boundaries(rows, case, setting, reference)
    if isolate:
        local += inexact_arithmetic(case, setting, runs, inject, seen.order)
        divergences = excuse_noise(divergences, local, rows, case, setting, reference, notes)
    if free and case.reseat:
        with _timed(seconds, "free run", say):
            runs.free = run_side(case, "port", setting, inject=inject).trace
    coverage = cover(seen.alignment, reference, seen.port, rows)
    notes += [f"unaligned by design: {site} ({why})" for site, why in list(seen.alignment.allowed.items())[:12]]
    if divergences or local:  # alone, a state that is not held is a matter of coverage
        divergences = [*divergences, *seen.lone]
    laws, said = broken(case.invariants, seen.port, reference)
    notes += said
    local += laws
    constants = static_divergences(changed, reference)
    result = conclude(rows, divergences, local, coverage, runs, notes, allowance, constants)
    if diagnose and result.first is not None and result.first.tier not in (TIER, STATIC):
        with _timed(seconds, "diagnose", say):
            result = explain(case, setting, runs, result, inject, seen.order, zoom, prepared.limits)
    result = with_static_cause(result, changed, len(prepared.weights))
    return replace(
        result,
        isolation=isolation,
        case=case.label,
        system=case.system,
        command=f"parity run {case.label}",
        fault=fault.name if fault else None,
        variation=variation.name if variation else None,
        seconds=dict(seconds),
    ), runs


def terms_of(case: Case, setting: Setting) -> Terms:
    """Return what a case says of its comparison."""
    dtype = str(setting.dtype).removeprefix("torch.")
    return Terms(case.names, case.allow_unaligned, case.relax, case.axis_words, dtype)


def dtype_of_case(case: Case, fault: Fault | None, variation: Variation | None) -> torch.dtype:
    """Return the dtype that a fault or variation asks for, else the first of the case."""
    chosen = (fault.dtype if fault else None) or (variation.dtype if variation else None)
    return chosen or case.dtypes[0]


@contextmanager
def _timed(seconds: dict[str, float], stage: str, say: Progress) -> Iterator[None]:
    say(stage)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
