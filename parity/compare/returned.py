"""What counts as the same result: rules for what a function returns and for what it leaves behind. Each can be relaxed by its name.

`names` keys and fields have equal names; `missing` and `extra` nothing is lost and nothing is added; `dtype` the dtype is the reference's; `empty` a
result without elements compares nothing; `left` inputs and buffers that one side changes, the other changes too. The shape is always the reference's: no
part of a result is repeated to make it fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from parity.align.pairs import Alignment
from parity.errors import CaseError
from parity.result import Divergence, Row
from parity.trace import ENDS, Record, Trace

RULES = ("names", "missing", "extra", "dtype", "empty", "left")


def known_rules(relax: Mapping[str, str]) -> Mapping[str, str]:
    """Return `relax`. Raises CaseError for a rule that there is not."""
    unknown = [rule for rule in relax if rule not in RULES]
    if unknown:
        raise CaseError(f"relax: there is no rule {unknown[0]!r} of the same result; there are: {', '.join(RULES)}")
    return relax


def judge_results(
    rows: Sequence[Row], alignment: Alignment, relax: Collection[str] = (), deployed: str = ""
) -> tuple[list[Row], list[Divergence]]:
    """Judge the rows of results by the rules that hold for them alone. Returns the rows, and divergences that no number shows.

    deployed: the dtype of the weights; in half precision a side may return what it computed in it, or widen that to float32.
    """
    widened = {"float32", deployed} if deployed in ("bfloat16", "float16") else set()
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    judged: list[Row] = []
    found: list[Divergence] = []
    for row in rows:
        pair = pairs[row.key]
        if pair.reference.role in ENDS:
            if row.how == "broadcast":
                row = replace(row, diverged=True)
            other = row.dtype[0] != row.dtype[1] and set(row.dtype) != widened
            if other and "dtype" not in relax and not row.diverged:
                detail = f"{row.dtype[0]} in the reference, {row.dtype[1]} in the port"
                found.append(_divergence(pair.reference, "dtype", row.error, detail))
        judged.append(row)
    return judged, found


def lone_results(
    alignment: Alignment, reference: Trace, port: Trace, relax: Collection[str] = ()
) -> tuple[Alignment, list[Divergence], list[str]]:
    """Turn lone parts of results into divergences: a part that is lost, or too many; what one side alone leaves behind.

    Only where both traces say that what was returned is in them. Returns the alignment without those sites.
    """
    both = reference.manifest.returned and port.manifest.returned
    paired = {p.reference.key for p in alignment.pairs}, {p.port.key for p in alignment.pairs}
    lost = [r for r in reference if r.role in ENDS and r.key not in paired[0] and r.site not in alignment.allowed]
    added = [r for r in port if r.role in ENDS and r.key not in paired[1] and r.site not in alignment.allowed]
    found: list[Divergence] = []
    notes: list[str] = []
    for records, other, metric, detail in (
        (lost, port, "missing", "the port does not return this"),
        (added, reference, "extra", "the reference does not return this"),
    ):
        for record in records:
            if record.role == "return" and both and metric not in relax:
                found.append(_divergence(record, metric, math.inf, detail, len(reference) + record.order))
            elif record.role == "after" and "left" not in relax and _is_there(record, other):
                side = "reference" if metric == "missing" else "port"
                text = f"the {side} alone leaves other values behind here"
                found.append(_divergence(record, metric, math.inf, text, len(reference) + record.order))
            elif record.role == "after":
                notes.append(f"{record.site}: changed by the run, and the other side has nothing of that name")
    sites = {r.site for r in (*lost, *added)}
    return _without(alignment, sites), found, notes


def is_empty(alignment: Alignment, relax: Collection[str] = ()) -> bool:
    """Tell whether both sides return something, and all of it is empty: nothing was compared."""
    results = [p.reference for p in alignment.pairs if p.reference.role == "return"]
    return bool(results) and "empty" not in relax and all(math.prod(r.shape) == 0 for r in results)


def _is_there(record: Record, other: Trace) -> bool:
    """Tell whether the other side has this input or buffer, and left it as it was."""
    if record.site.startswith("after.inputs"):
        return other.manifest.returned
    return record.site.removeprefix("after.buffers.") in other.manifest.buffers


def _without(alignment: Alignment, sites: Collection[str]) -> Alignment:
    return replace(
        alignment,
        missing=tuple(r for r in alignment.missing if r.role not in ENDS),
        extra=tuple((r, order) for r, order in alignment.extra if r.role not in ENDS),
        alone_reference=tuple(s for s in alignment.alone_reference if s not in sites),
        alone_port=tuple(s for s in alignment.alone_port if s not in sites),
    )


def _divergence(record: Record, metric: str, error: float, detail: str, order: int = -1) -> Divergence:
    return Divergence(
        site=record.site,
        coords=dict(record.coords),
        kind=record.kind,
        metric=metric,
        error=error,
        floor=0.0,
        order=record.order if order < 0 else order,
        module=record.module,
        detail=detail,
        shape=record.shape,
    )
