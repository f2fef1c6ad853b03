"""A trace that recorded only a window of its run: details from frame 2 on. What lies outside was not recorded, which is no sign that it was not computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from parity.align.pairs import Alignment
from parity.trace import Record, Trace

_CALL = "call"  # counts from the first record on, whenever that was


def within_windows(alignment: Alignment, reference: Trace, port: Trace) -> tuple[Alignment, tuple[str, ...]]:
    """Take calls before the window of the other side's trace out of what is missing or extra. Returns the alignment, and a note for each window.

    A window is where most of a side's sites that have an axis begin later than the other side's do, all at one index; a single site that begins late is a call that
    did not happen. A run that ends early has no window: its last calls are missing.
    """
    ours, theirs = _begins(reference), _begins(port)
    late = _window(theirs, ours), _window(ours, theirs)  # of the port's trace, of the reference's
    missing = [r for r in alignment.missing if _before(r, late[0], theirs)]
    extra = [r for r, _ in alignment.extra if _before(r, late[1], ours)]
    outside = frozenset(r.key for r in (*missing, *extra))
    if not outside:
        return alignment, ()
    notes = [
        f"the {side} trace holds most of its sites from {axis} {index} on: {len(lost)} records of the other side before that are not compared"
        for side, lost, window in (("port", missing, late[0]), ("reference", extra, late[1]))
        for axis, index in window.items()
        if lost
    ]
    kept = tuple(r for r in alignment.missing if r.key not in outside)
    more = tuple((r, order) for r, order in alignment.extra if r.key not in outside)
    return replace(alignment, missing=kept, extra=more, outside=outside), tuple(notes)


def _begins(trace: Trace) -> dict[tuple[str, str], int]:
    """Return the smallest index of each site on each axis."""
    found: dict[tuple[str, str], int] = {}
    for record in trace:
        for axis, index in record.coords.items():
            if axis != _CALL:
                found[record.site, axis] = min(index, found.get((record.site, axis), index))
    return found


def _window(own: dict[tuple[str, str], int], other: dict[tuple[str, str], int]) -> dict[str, int]:
    """Return, by axis, the index from which most of the shared sites are there, where the other side has them earlier."""
    shared = [place for place in own if place in other]
    late = Counter((axis, own[site, axis]) for site, axis in shared if own[site, axis] > other[site, axis])
    sizes = Counter(axis for _, axis in shared)
    return {axis: index for (axis, index), count in late.items() if 2 * count > sizes[axis]}


def _before(record: Record, window: dict[str, int], begins: dict[tuple[str, str], int]) -> bool:
    """Tell whether a record lies before the window, at a site that begins with it."""
    return any(
        record.coords.get(axis, index) < index and begins.get((record.site, axis), index) == index
        for axis, index in window.items()
    )
