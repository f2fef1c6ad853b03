"""Judging declared invariants: the first place of each law that does not hold on a trace, as a divergence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parity.case.invariants import Breach, Invariant
from parity.errors import CaseError
from parity.result import Divergence
from parity.trace import Trace

TIER = "invariant"


def broken(
    invariants: Sequence[Invariant], trace: Trace, reference: Trace | None = None
) -> tuple[list[Divergence], list[str]]:
    """Return the first breach of every law in order of execution, and notes.

    A law that the reference's own run breaks is no law: it is a note and nothing else. Raises CaseError when a law cannot be evaluated.
    """
    found: list[Divergence] = []
    notes: list[str] = []
    for law in invariants:
        first = _first(law, trace)
        if first is None:
            continue
        if reference is not None and _first(law, reference) is not None:
            notes.append(f"invariant '{law.name}' does not hold on the reference either: not judged")
            continue
        found.append(_divergence(law, first, reference))
    return sorted(found, key=lambda d: d.order), notes


def checked(invariants: Sequence[Invariant], trace: Trace) -> int:
    """Count the records that the laws speak of."""
    patterns = [re.compile(site) for law in invariants for site in law.sites]
    return sum(any(p.fullmatch(record.site) for p in patterns) for record in trace)


def _first(law: Invariant, trace: Trace) -> Breach | None:
    try:
        return min(law.breaches(trace), key=lambda b: b.record.order, default=None)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CaseError(f"invariant '{law.name}' cannot be evaluated: {type(error).__name__}: {error}") from error


def _divergence(law: Invariant, breach: Breach, reference: Trace | None) -> Divergence:
    record = breach.record
    counterpart = reference.get(record.key) if reference is not None else None
    where = f" ({breach.detail})" if breach.detail else ""
    return Divergence(
        site=record.site,
        coords=record.coords,
        kind=record.kind,
        metric="invariant",
        error=breach.amount,
        floor=0.0,
        order=counterpart.order if counterpart is not None else record.order,
        tier=TIER,
        module=record.module,
        detail=f"invariant '{law.name}' is broken: {law.text}{where}",
        index=breach.index,
        port_value=breach.value,
        shape=record.shape,
    )
