"""Pairs of two traces that nobody gave are hypotheses: what comes later vetoes them.

Two rules, stated in docs/floors.md. A pair inside a module whose output agrees is another boundary, not a bug: what is wrong inside shows in what comes out. And a pair
is a bug only where the nearest records that depend on it differ, too. When what the run returns agrees, no pair is. What cannot show a difference (nothing, yes and
no, a text, ids, NaN, one value throughout) vetoes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from parity.align.pairs import Alignment, Pair
from parity.capture.probes import root_label
from parity.result import Row
from parity.trace import Record, Trace

VETOED = "vetoed"
_NEAREST = 3  # records that depend on a pair say whether it is right
_FAR = 3.0  # floors that a site which agreed before must be off
_MOST = 200  # pairs in doubt that are looked into


@dataclass(frozen=True)
class Veto:
    """The rows and the alignment without the pairs that later values veto. agree: what both sides return was compared and agrees."""

    rows: list[Row]
    alignment: Alignment
    notes: tuple[str, ...] = ()
    agree: bool = False


def veto(rows: Sequence[Row], alignment: Alignment, reference: Trace, port: Trace) -> Veto:
    """Take back differing pairs that what follows them contradicts. They count as not compared."""
    pairs = {pair.reference.key: pair for pair in alignment.pairs}
    results = [row for row in rows if _is_result(pairs[row.key].reference, reference)]
    known = [row for row in results if row.error == row.error or row.diverged]
    if not known:
        return Veto(list(rows), alignment)
    differing = [row.order for row in known if row.diverged]
    showing = any(_shows(pairs[row.key].reference) for row in known)
    agree = showing and len(known) == len(results) and not differing
    last = min(differing, default=0 if showing else math.inf)
    start = math.inf if agree else _onset(rows, pairs, reference, last)
    healed = _inside_agreeing(rows, pairs, reference)
    sure = _right_before(rows)
    start = min([start, *(row.order for row in rows if row.key in sure)])
    wrong = {
        row.key
        for row in rows
        if row.diverged
        and pairs[row.key].how != "map"
        and row.key not in sure
        and (row.order < start or row.key in healed)
    }
    kept = [replace(row, diverged=False, error=math.nan, how=VETOED) if row.key in wrong else row for row in rows]
    missing = [r for r in alignment.missing if r.order < start]
    extra = [r for r, order in alignment.extra if order < start]
    notes = _said([row for row in rows if row.key in wrong], [*missing, *extra])
    alignment = replace(
        alignment,
        missing=tuple(r for r in alignment.missing if r not in missing),
        extra=tuple((r, order) for r, order in alignment.extra if r not in extra),
        alone_reference=tuple(dict.fromkeys([*alignment.alone_reference, *(r.site for r in missing)])),
        alone_port=tuple(dict.fromkeys([*alignment.alone_port, *(r.site for r in extra)])),
    )
    return Veto(kept, alignment, notes, agree)


def _right_before(rows: Sequence[Row]) -> set[str]:
    """Return the differing records whose site agreed at an earlier call: the boundary is the same, and what differs there now is far from noise."""
    agreed: set[str] = set()
    found: set[str] = set()
    for row in sorted(rows, key=lambda r: r.order):
        if row.diverged and row.site in agreed and row.error > _FAR * row.floor > 0:
            found.add(row.key)
        elif not row.diverged and 0 <= row.error <= row.floor and row.floor > 0:
            agreed.add(row.site)
    return found


def _is_result(record: Record, trace: Trace) -> bool:
    """Tell whether a record is what the run returns, or what its outermost module does."""
    if record.role == "return":
        return True
    return not trace.manifest.returned and record.role == "out" and _is_root(record, trace)


def _is_root(record: Record, trace: Trace) -> bool:
    label = root_label(trace.manifest.parameters)
    return bool(trace.manifest.parameters) and record.module == label and record.site.partition(".")[0] == label


def _shows(record: Record) -> bool:
    """Tell whether a record could show a difference of what it was made of: numbers and pictures do.

    Nothing, yes and no, a text, ids, NaN alone or one value throughout may be the same of anything.
    """
    picture = record.dtype == "uint8" and len(record.shape) >= 3
    if not (record.is_float or picture) or not math.prod(record.shape):
        return False
    seen = record.stats
    return seen is None or (seen.nonfinite < seen.count and (seen.count == 1 or seen.min < seen.max))


def _onset(rows: Sequence[Row], pairs: Mapping[str, Pair], reference: Trace, last: float) -> float:
    """Return the order of the first differing record that what depends on it bears out; of the first differing result where there is none."""
    known = {
        row.key: row.diverged
        for row in rows
        if row.diverged or (row.error == row.error and row.floor > 0 and _shows(pairs[row.key].reference))
    }
    flow = Flow(reference)
    doubtful = [row for row in rows if row.diverged and row.order < last and pairs[row.key].how != "map"]
    for row in doubtful[:_MOST]:
        sure, loose = flow.after(row.order, known)
        nearest = (sure or loose)[:_NEAREST]
        if 2 * sum(nearest) >= len(nearest):
            return row.order
    return last


class Flow:
    """What depends on a record of a trace, as far as equal values and calls of modules show it."""

    def __init__(self, trace: Trace) -> None:
        self.records = trace.records
        first: dict[str, int] = {}
        self.source = [first.setdefault(r.digest, i) if r.digest else i for i, r in enumerate(self.records)]

    def after(self, start: int, known: Mapping[str, bool]) -> tuple[list[bool], list[bool]]:
        """Return which of the known records that depend on record `start` differ, in order: those that take its value, and those that may."""
        begin = next((i for i, r in enumerate(self.records) if r.order >= start), len(self.records))
        if begin == len(self.records):
            return [], []
        inside = self.records[begin]
        grades = {begin: 2}  # 2: takes the value, 1: may (computed out of sight), 0: does not
        inputs: dict[str, list[int]] = {}
        found: tuple[list[bool], list[bool]] = ([], [])
        for i in range(begin + 1, len(self.records)):
            record = self.records[i]
            if record.role == "in":
                grade = grades.get(self.source[i], 0) if self.source[i] < i else 1
                inputs.setdefault(record.site.partition(".in.")[0], []).append(grade)
            elif record.role == "out":
                given = inputs.pop(record.module, None)
                holds = inside.module == record.module or inside.module.startswith(f"{record.module}.")
                grade = 2 if holds else max(given) if given else 0 if record.module in inputs else 1
            else:
                grade = 1
            grades[i] = grade
            if grade and record.key in known:
                found[0 if grade == 2 else 1].append(known[record.key])
            if all(len(part) >= _NEAREST for part in found):
                break
        return found


def _inside_agreeing(rows: Sequence[Row], pairs: dict[str, Pair], reference: Trace) -> set[str]:
    """Return the differing pairs inside a module whose next output agrees (all its parts): another boundary, or another layout, not another result."""
    outputs: dict[str, dict[tuple[int, str], bool]] = {}
    for row in rows:
        record = pairs[row.key].reference
        if record.role == "out" and record.is_float and _shows(record) and (row.diverged or row.error == row.error):
            calls = outputs.setdefault(record.module, {})
            calls[(row.order, record.site)] = not row.diverged
    found = set()
    for row in rows:
        record = pairs[row.key].reference
        if not row.diverged or record.role in ("return", "after", "parameter", "gradient"):
            continue
        if any(_next_agrees(outputs.get(module, {}), row) for module in _around(record)):
            found.add(row.key)
    return found


def _around(record: Record) -> Iterable[str]:
    """Yield the modules whose output depends on a record: those around it; of an input, the module that gets it, too."""
    path = record.site.partition(".in.")[0] if record.role == "in" else record.module
    if record.role == "out":
        path = path.rpartition(".")[0]
    while path:
        yield path
        path = path.rpartition(".")[0]


def _next_agrees(calls: dict[tuple[int, str], bool], row: Row) -> bool:
    later = [order for order, _ in calls if order > row.order]
    if not later:
        return False
    first, parts = min(later), len({site for _, site in calls})
    call = [calls[key] for key in calls if first <= key[0] < first + parts]
    return all(call)


def _said(wrong: Sequence[Row], lone: Sequence[Record]) -> tuple[str, ...]:
    notes = []
    if wrong:
        sites = list(dict.fromkeys(row.site for row in wrong))
        more = f", and {len(sites) - 1} more" if len(sites) > 1 else ""
        notes.append(
            f"{sites[0]} ({wrong[0].error:.1e}{more}): the pair differs and what follows it agrees: another boundary, not compared"
        )
    if lone:
        notes.append(f"{len(lone)} calls are seen on one side only, the first is {lone[0].key}; what follows agrees")
    return tuple(notes)
