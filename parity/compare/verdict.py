"""Which pairs diverge, what is missing, what was covered: the verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from parity.align.pairs import Alignment, Pair
from parity.compare.masks import describe_mask
from parity.compare.measure import worst
from parity.result import Coverage, Divergence, Row
from parity.trace import Record, Trace

_SOUGHT = 400  # the worst element is dear to find: later divergences name it only at their site's first


def judge(
    rows: Iterable[Row],
    alignment: Alignment,
    reference: Trace,
    port: Trace,
    tier: str = "run",
    axis_words: Mapping[str, Mapping[str, int]] | None = None,
) -> list[Divergence]:
    """Return the divergences in the reference's order: values over their floors, other shapes, non-finite values, missing and extra calls.

    axis_words: what the axes of a site are called (regular expression -> name -> axis); with it, differences are also said in words.
    """
    by_key = {pair.reference.key: pair for pair in alignment.pairs}
    found: list[Divergence] = []
    sites: set[str] = set()
    for row in rows:
        if row.diverged:
            values = len(found) < _SOUGHT or row.site not in sites
            divergence = _divergence(row, by_key[row.key], reference, port, tier, values=values)
            found.append(
                _in_words(divergence, by_key[row.key], reference, port, axis_words or {}) if values else divergence
            )
            sites.add(row.site)
    for record in alignment.missing:
        found.append(_lone(record, "missing", record.order, _why(record, "port"), tier))
    for record, order in alignment.extra:
        found.append(_lone(record, "extra", order, _why(record, "reference"), tier))
    return sorted(found, key=lambda d: d.order)


def _why(record: Record, side: str) -> str:
    if record.kind == "gradient":
        return f"no gradient arrives here in the {side}: detached, frozen, or run without gradients"
    return f"the {side} did not compute this"


def lone_states(alignment: Alignment, reference: Trace, port: Trace) -> list[Divergence]:
    """Return the first record of each state that the reference holds and the port never does, though it names all its own states alike."""
    if any(r.role == "state" and r.site in alignment.alone_port for r in port):
        return []
    found: dict[str, Divergence] = {}
    for record in reference:
        if record.role == "state" and record.site in alignment.alone_reference and record.site not in found:
            found[record.site] = _lone(record, "missing", record.order, "the port never holds this", "run")
    return list(found.values())


def _divergence(row: Row, pair: Pair, reference: Trace, port: Trace, tier: str, values: bool) -> Divergence:
    """Describe one divergence; values: with the worst element and both values there."""
    base = Divergence(
        site=row.site,
        coords=row.coords,
        kind=row.kind,
        metric="rel_l2" if pair.reference.is_float else "mismatches",
        error=row.error,
        floor=row.floor,
        order=row.order,
        tier=tier,
        module=pair.reference.module,
        shape=row.shape,
        port=row.port,
    )
    r, p = reference.tensor(pair.reference.key), pair.port_tensor(port)
    shape = tuple(p.shape) if p is not None else pair.port.shape
    if shape != row.shape and not (row.estimated and row.error == row.error):
        detail = f"shape {list(row.shape)} (reference), {list(shape)} (port)"
        return replace(base, metric="shape", error=math.inf, detail=detail)
    if r is not None and p is not None and r.is_complex() != p.is_complex():
        return replace(base, metric="dtype", detail=f"{row.dtype[0]} in the reference, {row.dtype[1]} in the port")
    if row.nonfinite[0] != row.nonfinite[1]:
        detail = f"{row.nonfinite[0]} non-finite values (reference), {row.nonfinite[1]} (port)"
        base = replace(base, metric="nonfinite", error=float(abs(row.nonfinite[1] - row.nonfinite[0])), detail=detail)
    if row.estimated and base.metric == "rel_l2" and row.error <= row.floor and any(row.nonfinite):
        return replace(base, metric="nonfinite", detail="non-finite values at other places, or of other kinds")
    if row.estimated:
        base = replace(base, detail=base.detail or _order_free(pair))
    if not values or r is None or p is None or r.numel() == 0:
        return base
    index, left, right = worst(r, p)
    return replace(base, index=index, reference_value=left, port_value=right)


def _in_words(
    divergence: Divergence, pair: Pair, reference: Trace, port: Trace, axis_words: Mapping[str, Mapping[str, int]]
) -> Divergence:
    """Add where values differ in the words that the case has for the axes of this site."""
    axes = next((words for pattern, words in axis_words.items() if re.fullmatch(pattern, divergence.site)), None)
    r, p = reference.tensor(pair.reference.key), pair.port_tensor(port)
    if axes is None or divergence.detail or r is None or p is None or max(axes.values()) >= r.dim():
        return divergence
    return replace(divergence, detail=describe_mask(r, p, axes))


def _order_free(pair: Pair) -> str:
    a, b = pair.reference.stats, pair.port.stats
    if a is None or b is None or a.count != b.count:
        return "estimated from sketches"
    close = all(
        math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in ((a.min, b.min), (a.max, b.max), (a.sumsq, b.sumsq))
    )
    return (
        "the same values in another order (equal statistics, different sketches)"
        if close
        else "estimated from sketches"
    )


def _lone(record: Record, metric: str, order: int, detail: str, tier: str) -> Divergence:
    return Divergence(
        site=record.site,
        coords=dict(record.coords),
        kind=record.kind,
        metric=metric,
        error=math.inf,
        floor=0.0,
        order=order,
        tier=tier,
        module=record.module,
        detail=detail,
        shape=record.shape,
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
