"""Two traces that were made anywhere: what they say of the precision that they ran in, and what the reader of a comparison must know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from parity.align.pairs import Alignment
from parity.boundary.patterns import Pattern
from parity.boundary.text import one_line
from parity.case import Case
from parity.compare.floors import FACTOR, ISOLATION, NOISE, Floors
from parity.result import Row
from parity.trace import Trace

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def deployed_in(*traces: Trace) -> str:
    """Return the half-precision dtype that most weights of a captured model have, on either side; else nothing."""
    for trace in traces:
        counts = Counter(one.dtype for one in trace.manifest.parameters.values())
        dtype = max(counts, key=lambda d: counts[d], default="") or trace.manifest.dtype
        if dtype in _HALVES:
            return dtype
    return ""


def floors_in(reference: Trace, port: Trace) -> Floors:
    """Return the floors that the traces carry; fixed ones where neither does.

    Each side's own error counts: a right port may be off by what it makes itself, too. So does what roundings of its values do, as far as a run excuses it. Between
    two runs in float64, the limits of isolation count. Declared noise counts always.
    """
    double = {reference.manifest.dtype, port.manifest.dtype} == {"float64"}
    noise = _declared(reference) | _declared(port)
    ours, theirs = (
        dict(trace.manifest.floors.get("isolation", {})) if double else _own(trace) for trace in (reference, port)
    )
    if not ours and not theirs:
        return Floors(noise=noise)
    levels = reference.manifest.floors.get("levels", {})
    least = ISOLATION if double else 0.0
    return Floors(pooled=ours, ports=theirs, levels=levels, measured=True, least=least, noise=noise)


def _own(trace: Trace) -> dict[str, float]:
    own, rounding = (trace.manifest.floors.get(name, {}) for name in ("own", "rounding"))
    moved = {site: error * NOISE / FACTOR for site, error in rounding.items()}
    return {site: max(own.get(site, 0.0), moved.get(site, 0.0)) for site in {**own, **moved}}


def _declared(trace: Trace) -> dict[str, float]:
    """Return the noise that a trace declares, by the sites that its patterns mean. Raises CaseError for what is no pattern."""
    declared = trace.manifest.floors.get("noise", {})
    patterns = {Pattern(text, "declared noise"): error for text, error in declared.items()}
    found = {}
    for site in trace.sites():
        error = max((e for pattern, e in patterns.items() if pattern.fullmatch(site)), default=0.0)
        if error:
            found[re.escape(site)] = error
    return found


def carrying(reference: Trace, floors: Floors, limits: Floors | None, case: Case) -> Trace:
    """Return the reference's trace with what was measured and what its case says, so that it can be judged again without a model."""
    found: dict[str, Mapping[str, float]] = {}
    if floors.measured:
        found = {"own": dict(floors.pooled), "levels": dict(floors.levels)}
    if limits is not None:
        found["isolation"] = dict(limits.pooled)
    if case.noise:
        found["noise"] = dict(case.noise)
    ignored = {rule.reference: rule.ignore for rule in case.names.rules if rule.ignore and not rule.port}
    rules = {"unaligned": {**case.allow_unaligned, **ignored}, "relax": dict(case.relax)}
    return reference.with_manifest(floors=found, rules=rules)


def other_dtypes(reference: Trace, port: Trace) -> dict[str, str]:
    """Return the rule that results have one dtype as relaxed where the weights of the two sides have different ones."""
    kinds = [Counter(one.dtype for one in trace.manifest.parameters.values()) for trace in (reference, port)]
    most = [max(kind, key=lambda name: kind[name], default="") for kind in kinds]
    if most[0] == most[1] or not all(most):
        return {}
    return {"dtype": f"the weights are {most[0]} (reference), {most[1]} (port)"}


def half_of(name: str) -> torch.dtype:
    """Return the half-precision dtype of that name; float32 for any other."""
    return _HALVES.get(name, torch.float32)


def of_one_case(reference: Trace, port: Trace) -> bool:
    """Tell whether both traces are runs of one case: then the port's names are the reference's already."""
    left, right = reference.manifest, port.manifest
    return bool(left.case) and (left.system, left.case) == (right.system, right.case)


def order_notes(reference: Trace, port: Trace) -> tuple[str, ...]:
    """Say where an order was assumed, where a run was cut off, and which noise is declared."""
    declared = {**reference.manifest.floors.get("noise", {}), **port.manifest.floors.get("noise", {})}
    notes = [f"declared noise: {one_line(site, 80)} may be off by {error:.1e}" for site, error in declared.items()]
    if reference.manifest.order_assumed:
        notes.append(
            "the reference trace has no 'order' entry: natural order of its keys was assumed, so 'first' means first in that order"
        )
    for side, trace in (("reference", reference), ("port", port)):
        if not trace.manifest.complete:
            notes.append(f"the {side} trace is incomplete: its run was cut off after {len(trace)} records")
    return tuple(notes)


def unmeasured_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say how many pairs could not be measured."""
    unknown = [row.key for row in rows if row.error != row.error and not row.diverged]
    if not unknown:
        return ()
    return (
        f"{len(unknown)} records could not be measured (sketches without tensors, in another layout), the first is {unknown[0]}",
    )


def results_agree(rows: Sequence[Row], alignment: Alignment) -> bool:
    """Tell whether what the runs return was compared, all of it, and agrees."""
    ends = {pair.reference.key for pair in alignment.pairs if pair.reference.role == "return"}
    results = [row for row in rows if row.key in ends]
    return bool(results) and not any(row.diverged or row.error != row.error for row in results)
