"""Which record of the port is which of the reference.

Records carry the reference's names when a name map was applied at capture. What a map does not say is found from evidence, strongest first: equal
names, then the values themselves (`parity.align.by_values`). What stays alone is listed and counts against the verdict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parity.align.gradients import stopped
from parity.align.pairs import Alignment, Pair
from parity.errors import CaseError
from parity.result import format_key
from parity.trace import ENDS, Record, Trace
from parity.trace.names import NameMap, Target


def align(
    reference: Trace,
    port: Trace,
    names: NameMap | None = None,
    allowed: Mapping[str, str] | None = None,
    *,
    by_value: bool = False,
) -> Alignment:
    """Pair the records of two traces.

    names: a map that is applied now (to records captured under a map it says only what may stay alone). allowed: sites that may stay
    alone, regular expression -> reason. by_value: also match what names do not.
    """
    candidates = _named(port, names)
    if by_value and names is None and _foreign(reference, port):
        candidates = {key: found for key, found in candidates.items() if found[0].role in ENDS}
    pairs: list[Pair] = []
    used: set[str] = set()
    for record in reference:
        found = candidates.get(record.key)
        if found is not None:
            origin, target = found
            pairs.append(Pair(record, origin, "name" if target is None else "map", target))
            used.add(origin.key)
    notes: tuple[str, ...] = ()
    if by_value:
        from parity.align.unnamed import match_by_value

        paired = {p.reference.key for p in pairs}
        loose = (
            [r for r in reference if r.key not in paired and r.role not in ENDS],
            [p for p in port if p.key not in used and p.role not in ENDS],
        )
        found_pairs, notes = match_by_value(reference, port, loose[0], loose[1])
        if names is None:
            pairs = [_laid_out(pair, reference, port) for pair in pairs]
        pairs = sorted([*pairs, *found_pairs], key=lambda pair: pair.reference.order)
        used |= {p.port.key for p in found_pairs}
    return _finish(reference, port, pairs, used, names or NameMap(), dict(allowed or {}), notes)


def _laid_out(pair: Pair, reference: Trace, port: Trace) -> Pair:
    """Find the layout of a pair of equal names whose shapes differ: the two sides may keep one value in two layouts. A result keeps its shape."""
    from parity.align.by_values import Layouts

    ref, other = pair.reference, pair.port
    if ref.role in ENDS or ref.shape == other.shape or math.prod(ref.shape) != math.prod(other.shape):
        return pair
    return replace(pair, target=Layouts().target(ref, other, reference, port))


def _foreign(reference: Trace, port: Trace) -> bool:
    """Tell whether the two sides name things by different schemes: then a name that both have may well mean two things."""
    left, right = set(reference.sites()), set(port.sites())
    return 0 < 2 * len(left & right) < min(len(left), len(right))


def _named(port: Trace, names: NameMap | None) -> dict[str, tuple[Record, Target | None]]:
    """Return the port's records by the reference key that the name map gives them."""
    found: dict[str, tuple[Record, Target | None]] = {}
    for record in port:
        targets = (
            names.targets(record.site)
            if names is not None and not (record.origin or record.layout)
            else (Target(record.site),)
        )
        for target in targets or ():
            plain = target == Target(record.site)
            found.setdefault(format_key(target.site, record.coords), (record, None if plain else target))
    return found


def _finish(
    reference: Trace,
    port: Trace,
    pairs: list[Pair],
    used: set[str],
    names: NameMap,
    allowed: dict[str, str],
    notes: tuple[str, ...],
) -> Alignment:
    paired = {p.reference.key: p for p in pairs}
    # Only names promise that a call has a counterpart: values that happen to agree at one call promise nothing about the others.
    named = [p for p in pairs if p.how in ("name", "map") and _promised(p, names)]
    ref_sites = {p.reference.site for p in named}
    port_sites = {p.port.site for p in named}
    missing: list[Record] = []
    alone_ref: list[Record] = []
    alone_port: list[Record] = []
    extra: list[tuple[Record, int]] = []
    for record in reference:
        if record.key not in paired:
            (missing if record.site in ref_sites else alone_ref).append(record)
    before = -1
    order_of = {p.port.key: p.reference.order for p in pairs}
    for record in port:
        before = order_of.get(record.key, before)
        if record.key in used:
            continue
        if names.targets(record.origin or record.site) == ():
            continue
        if record.site in port_sites or record.site in ref_sites:
            extra.append((record, before))
        else:
            alone_port.append(record)
    sites = _one_to_one(pairs)
    cut = stopped(alone_ref, sites, alone_port) | stopped(alone_port, sites, alone_ref)
    missing += [r for r in alone_ref if r.key in cut]
    extra += [(r, _order_before(r, port, order_of)) for r in alone_port if r.key in cut]
    alone_ref, alone_port = ([r for r in side if r.key not in cut] for side in (alone_ref, alone_port))
    reasons: dict[str, str] = {}
    rest_ref = _apply_allowance(alone_ref, allowed, names, reasons)
    rest_port = _apply_allowance(alone_port, allowed, None, reasons)
    return Alignment(tuple(pairs), tuple(missing), tuple(extra), rest_ref, rest_port, reasons, notes)


def _one_to_one(pairs: Sequence[Pair]) -> set[str]:
    """Return the reference sites whose port value is theirs alone: neither a part of a fused one nor shared, and no input of such a module."""
    uses: dict[str, set[str]] = {}
    for p in pairs:
        uses.setdefault(p.port.origin or p.port.site, set()).add(p.reference.site)
    shared = {site for sites in uses.values() if len(sites) > 1 for site in sites}
    fused = {s.partition(".in.")[0] for s in shared}
    return {p.reference.site for p in pairs if p.reference.site.partition(".in.")[0] not in fused}


def _order_before(record: Record, port: Trace, order_of: Mapping[str, int]) -> int:
    """Return the order of the reference's record that the port's last paired record before this one has."""
    earlier = port.records[: record.order]
    return next((order_of[r.key] for r in reversed(earlier) if r.key in order_of), -1)


def _promised(pair: Pair, names: NameMap) -> bool:
    """Tell whether each call of a pair has a counterpart: it was given, or every value has one gradient."""
    return pair.reference.role in ("gradient", "parameter") or names.promises(pair.port.origin or pair.port.site)


def _apply_allowance(
    alone: Sequence[Record], allowed: Mapping[str, str], names: NameMap | None, reasons: dict[str, str]
) -> tuple[str, ...]:
    """Return the lone sites without a stated reason; note the reasons of the others."""
    rest: dict[str, None] = {}
    for site in dict.fromkeys(record.site for record in alone):
        reason = next((why for pattern, why in allowed.items() if _full(pattern, site)), None)
        if reason is None and names is not None:
            reason = names.ignored_reference(site)
        if reason is None:
            rest[site] = None
        else:
            reasons[site] = reason
    return tuple(rest)


def _full(pattern: str, site: str) -> bool:
    try:
        return re.fullmatch(pattern, site) is not None
    except re.error as error:
        raise CaseError(f"{pattern!r} is no regular expression: {error}") from None
