"""One case through all stages: run, align, compare, isolate, locate, drill down, diagnose. The only place that knows their order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.align.pairs import Alignment
from parity.align.pieces import fit_calls
from parity.align.results import fit_results
from parity.align.traces import align
from parity.capture.environment import environment_differences
from parity.case import Case, Fault, Setting, Variation
from parity.compare import floors as floors_
from parity.compare.benign import excuse_masks, excuse_permutations, is_rounding, is_roundoff
from parity.compare.constants import excuse_constants
from parity.compare.floors import Floors
from parity.compare.gradients import heal_gradients
from parity.compare.invariants import TIER, broken, checked
from parity.compare.measure import measure, own_errors, own_levels
from parity.compare.noise import excuse_noise
from parity.compare.precision import inexact_arithmetic, moved_boundaries
from parity.compare.returned import is_empty, judge_results, lone_results
from parity.compare.verdict import judge, lone_states
from parity.diagnose.explain import explain
from parity.errors import SideError
from parity.locate.first import culprits, first_divergence, owner, training_owner, without_echoes
from parity.result import Coverage, Culprit, Divergence, Result, Row
from parity.run.side import Inject, Runs, grafting, reseating, run_side
from parity.trace import Trace

EMPTY = "the result has no elements: it compares nothing"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What does not depend on the port: the reference's runs and the limits that follow. Made once for many faults."""

    reference: Trace
    precise: Trace | None  # in float64, each step from the deployed run's state
    floors: Floors
    limits: Floors | None  # of isolation: how a site answers to weights that move by one unit of roundoff
    notes: tuple[str, ...] = ()


def prepare(
    case: Case, setting: Setting, *, isolate: bool = True, fixed: float | None = None, say: Progress = lambda text: None
) -> Prepared:
    """Run the reference as deployed, in float64, and in float64 with moved weights."""
    say("reference")
    reference = run_side(case, "reference", setting).trace
    say("floors")
    try:
        precise = run_side(case, "reference", setting, upcast=True, override=reseating(case, reference)).trace
    except SideError as error:
        return Prepared(
            reference,
            None,
            Floors(fixed=fixed),
            None,
            (f"no float64 run of the reference, fixed tolerances instead: {error}",),
        )
    records = {record.key: record for record in reference}
    own = own_errors(reference, precise), own_levels(reference, precise)
    floors = Floors(fixed=fixed) if fixed is not None else floors_.measured(own[0], records, levels=own[1])
    limits = None
    if isolate:
        moved = run_side(case, "reference", setting, upcast=True, jitter=True, override=grafting(precise)).trace
        limits = floors_.measured(own_errors(precise, moved), {r.key: r for r in precise}, least=floors_.ISOLATION)
    return Prepared(reference, precise, floors, limits)


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
) -> tuple[Result, Runs]:
    """Run both sides of a case and judge the port.

    isolate: also compare every site alone, in float64 on the reference's values. free: also run the port without re-seating, for information.
    fixed: a relative tolerance instead of measured floors. allowance: share of the reference's sites that may stay unaligned.
    prepared: the reference's runs, when they were made before for the same case and setting.
    zoom: a site ("first" for the first divergence): list the operations of both sides that lead to it.
    Raises SideError when a side fails to build or run.
    """
    setting = setting or Setting(dtype=_dtype_of(case, fault, variation))
    case = case.under(variation)
    inject = (fault.inject if fault else None) or (variation.inject if variation else None)
    say = progress or (lambda text: None)
    seconds: dict[str, float] = {}
    with _timed(seconds, "reference", say):
        prepared = prepared or prepare(case, setting, isolate=isolate, fixed=fixed, say=say)
    reference = prepared.reference
    with _timed(seconds, "port", say):
        port = run_side(case, "port", setting, inject=inject, override=reseating(case, reference)).trace
    port, pieces = fit_calls(reference, fit_results(reference, port, case.relax))
    runs = Runs(reference, port, prepared.precise, pieces=pieces)
    notes: list[str] = [
        *case.quirks,
        *prepared.notes,
        *(f"rule {rule!r} relaxed: {why}" for rule, why in case.relax.items()),
    ]
    notes += [f"{trace.manifest.side}: {note}" for trace in (reference, port) for note in trace.manifest.notes]
    if pieces:
        notes.append(
            f"{len(pieces)} calls of the port are parts of the reference's, or the reverse: joined before they were compared"
        )
    with _timed(seconds, "compare", say):
        alignment, ends, said = lone_results(
            align(reference, port, case.names, case.allow_unaligned), reference, port, case.relax
        )
        notes += said
        rows = measure(alignment.pairs, reference, port, prepared.floors)
        evidence = case.names.evidence()
        rows = [replace(row, how=evidence.get(row.site, row.how)) for row in rows]
        rows, same = excuse_masks(rows, alignment, reference, port)
        rows, order, benign = excuse_permutations(rows, alignment, reference, port)
        rows = _excuse_rounding(rows, reference, port, setting, notes)
        rows, others = judge_results(rows, alignment, case.relax, reference.manifest.dtype)
        found = judge(rows, alignment, reference, port, axis_words=case.axis_words)
        divergences = sorted([*found, *others, *ends], key=lambda d: d.order)
        divergences, healed, scaled = heal_gradients(divergences, rows, alignment, reference, port)
        notes += [healed] if healed else []
        lone = lone_states(alignment, reference, port)
        notes += [*alignment.notes, *same, *benign]
    local: list[Divergence] = []
    if isolate and prepared.limits is not None:
        with _timed(seconds, "isolate", say):
            local, rows = _isolate(case, setting, runs, prepared.limits, rows, inject, order, notes)
            if scaled:
                local = [d for d in local if d.kind != "gradient"]
            divergences = _excuse_roundoff(divergences, rows, setting.dtype, notes)
    local += moved_boundaries(rows, case, setting, reference)
    if isolate:
        local += inexact_arithmetic(case, setting, runs, inject, order)
        divergences = excuse_noise(divergences, local, rows, case, setting, reference, notes)
    if free and case.reseat:
        with _timed(seconds, "free run", say):
            runs.free = run_side(case, "port", setting, inject=inject).trace
    coverage = cover(alignment, reference, port, rows)
    if is_empty(alignment, case.relax):
        notes.append(EMPTY)
    notes += [f"unaligned by design: {site} ({why})" for site, why in list(alignment.allowed.items())[:12]]
    if divergences or local:  # alone, a state that is not held is a matter of coverage
        divergences = [*divergences, *lone]
    laws, said = broken(case.invariants, port, reference)
    notes += said
    local += laws
    result = _conclude(case, rows, divergences, local, coverage, runs, notes, allowance)
    if diagnose and result.first is not None and result.first.tier != TIER:
        with _timed(seconds, "diagnose", say):
            result = explain(case, setting, runs, result, inject, order, zoom, prepared.limits)
    return replace(
        result,
        fault=fault.name if fault else None,
        variation=variation.name if variation else None,
        seconds=dict(seconds),
    ), runs


def run_alone(
    case: Case, setting: Setting | None = None, *, fault: Fault | None = None, variation: Variation | None = None
) -> Result:
    """Run the port without a reference and judge the case's invariants alone. Raises SideError when it fails to build or run."""
    setting = setting or Setting(dtype=_dtype_of(case, fault, variation))
    inject = (fault.inject if fault else None) or (variation.inject if variation else None)
    port = run_side(case, "port", setting, inject=inject).trace
    found, _ = broken(case.invariants, port)
    count = checked(case.invariants, port)
    verdict = "incomparable" if not count else "diverged" if found else "match"
    first = found[0] if found else None
    culprit = Culprit(first.module or first.site, site=first.site, coords=dict(first.coords)) if first else None
    names = ", ".join(law.name for law in case.invariants) or "none"
    return Result(
        verdict=verdict,  # type: ignore[arg-type]
        first=first,
        culprit=culprit,
        causes=(),
        coverage=Coverage(compared=count, reference=0, port=len(port)),
        divergences=tuple(found),
        culprits=(culprit,) if culprit else (),
        notes=(f"the port alone, no reference: {count} records under the invariants {names}",),
        environment={
            "reference": {},
            "port": dict(port.manifest.environment),
            "differences": [],
            "dtype": port.manifest.dtype,
            "seed": setting.seed,
        },
        case=case.label,
        system=case.system,
        command=f"parity run {case.label} --alone",
        fault=fault.name if fault else None,
        variation=variation.name if variation else None,
    )


def cover(alignment: Alignment, reference: Trace, port: Trace, rows: Sequence[Row]) -> Coverage:
    """Count what was compared and what was not, on each side. A pair that could not be measured was not compared."""
    unknown = {row.key: row.site for row in rows if row.error != row.error and not row.diverged}
    kinds: dict[str, int] = {}
    for pair in alignment.pairs:
        if pair.reference.key not in unknown:
            kinds[pair.reference.kind] = kinds.get(pair.reference.kind, 0) + 1
    return Coverage(
        compared=len(alignment.pairs) - len(unknown),
        reference=len(reference),
        port=len(port),
        unaligned_reference=tuple(dict.fromkeys([*alignment.alone_reference, *unknown.values()])),
        unaligned_port=alignment.alone_port,
        kinds=kinds,
    )


def verdict_of(divergences: Sequence[Divergence], coverage: Coverage, complete: bool, allowance: float = 0.0) -> str:
    """Return the verdict: never `match` with nothing aligned, an incomplete trace, or more lone reference sites than allowed."""
    if coverage.compared == 0:
        return "incomparable"
    if divergences:
        return "diverged"
    lone = len(coverage.unaligned_reference)
    sites = lone + max(1, coverage.compared)
    if (
        not complete
        or lone > allowance * sites
        or (0 < allowance < 1 and lone == allowance * sites)
        or (allowance == 0.0 and coverage.unaligned_port)
    ):
        return "incomplete"
    return "match"


def _dtype_of(case: Case, fault: Fault | None, variation: Variation | None) -> torch.dtype:
    chosen = (fault.dtype if fault else None) or (variation.dtype if variation else None)
    return chosen or case.dtypes[0]


def _isolate(
    case: Case,
    setting: Setting,
    runs: Runs,
    limits: Floors,
    rows: list[Row],
    inject: Inject | None,
    order: Mapping[str, Callable[[Tensor], Tensor]],
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
    own = _excuse_rounding(own, precise, port, setting, notes)
    deployed = {row.key: row for row in rows}
    own = excuse_constants(own, deployed, precise, port, case.rounded, setting.dtype, notes)
    found = judge(own, replace(alignment, missing=(), extra=()), precise, port, tier="isolation")
    alone = {row.key: row.error for row in own}
    return without_echoes(found), [replace(row, isolated=alone.get(row.key, float("nan"))) for row in rows]


def _excuse_rounding(rows: list[Row], reference: Trace, port: Trace, setting: Setting, notes: list[str]) -> list[Row]:
    """In a half-precision deployment, take back divergences that are one rounding to that precision."""
    if not floors_.is_low_precision(setting.dtype):
        return rows
    kept = []
    for row in rows:
        r, p = (reference.tensor(row.key), port.tensor(row.key)) if row.diverged else (None, None)
        if r is not None and p is not None and is_rounding(r, p, setting.dtype):
            notes.append(
                f"{row.site}: differs by one rounding to {str(setting.dtype).removeprefix('torch.')}: kept in another precision"
            )
            row = replace(row, diverged=False, how="rounding")
        kept.append(row)
    return kept


def _excuse_roundoff(
    divergences: list[Divergence], rows: list[Row], deployed: torch.dtype, notes: list[str]
) -> list[Divergence]:
    """Take back divergences of a few hundred units of float32 whose site agrees in float64 on the same inputs."""
    harmless = {row.key: row for row in rows if is_roundoff(row, deployed)}
    excused = {d.site: d.error for d in divergences if d.key in harmless}
    if excused:
        site, error = next(iter(excused.items()))
        notes.append(
            f"{site} and {len(excused) - 1} later sites: float32 roundoff above the reference's own ({error:.1e}); equal in float64 on equal inputs"
        )
    return [d for d in divergences if d.key not in harmless]


def _conclude(
    case: Case,
    rows: list[Row],
    divergences: list[Divergence],
    local: list[Divergence],
    coverage: Coverage,
    runs: Runs,
    notes: list[str],
    allowance: float,
) -> Result:
    everything = [*divergences, *local]
    complete = runs.reference.manifest.complete and runs.port.manifest.complete
    environment = {
        "reference": dict(runs.reference.manifest.environment),
        "port": dict(runs.port.manifest.environment),
        "differences": environment_differences(runs.reference.manifest.environment, runs.port.manifest.environment),
        "dtype": runs.reference.manifest.dtype,
        "device": runs.reference.manifest.device,
        "seed": runs.reference.manifest.seed,
    }
    first = first_divergence(everything)
    compared = {row.key for row in rows}
    found = culprits(local, runs.precise or runs.reference, compared) if local else ()
    culprit = (
        Culprit(
            training_owner(first, everything, runs.reference) or owner(first, runs.reference, compared),
            site=first.site,
            coords=dict(first.coords),
        )
        if first
        else None
    )
    return Result(
        verdict=verdict_of(everything, coverage, complete and EMPTY not in notes, allowance),  # type: ignore[arg-type]
        first=first,
        culprit=culprit,
        causes=(),
        coverage=coverage,
        divergences=tuple(sorted(everything, key=lambda d: d.order)),
        culprits=found or ((culprit,) if culprit else ()),
        rows=tuple(rows),
        environment=environment,
        notes=tuple(dict.fromkeys(notes)),
        case=case.label,
        system=case.system,
        command=f"parity run {case.label}",
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str, say: Progress) -> Iterator[None]:
    say(stage)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
