"""Pairing the records of two traces that names do not pair: by weights, by values, by the pattern of names, by order.

A capture describes the weights of its model; equal weights pair modules, and with them their sites. Values pair what has no weights, as far as they agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from parity.align.by_values import (
    Layouts,
    Matches,
    match_between,
    match_templates,
    match_values,
    module_of,
    moments_of,
    near,
    off,
    stretches,
)
from parity.align.by_weights import WeightMatch, leaf_of, leaves_of, pair_prints, print_of
from parity.align.inference import match_containers, match_modules
from parity.align.pairs import Pair
from parity.capture.probes import root_label
from parity.result import format_key
from parity.trace import Record, Trace

_ROUNDED = 1e-2  # what moments of one quantity may be off by in half precision, between two known places


def match_by_value(
    reference: Trace, port: Trace, loose_ref: Sequence[Record], loose_port: Sequence[Record]
) -> tuple[list[Pair], tuple[str, ...]]:
    """Pair records that names left alone. Returns the pairs and notes on the evidence."""
    matches = Matches()
    weights = _match_weights(matches, reference, port, loose_ref, loose_port)
    match_values(matches, reference, port, loose_ref, loose_port)
    match_templates(matches, [r.site for r in loose_ref], [p.site for p in loose_port])
    _match_nearest(matches, reference, port, loose_ref, loose_port)
    known = {r.site for r in loose_ref}
    for record in loose_port:
        if record.site in known:
            matches.add(record.site, record.site, "name")
    match_between(matches, loose_ref, loose_port, _differs(matches, reference, port, loose_ref, loose_port))
    layouts = Layouts()
    by_key = {r.key: r for r in loose_ref}
    pairs = []
    for record in loose_port:
        if record.site not in matches.found:
            continue
        site, how = matches.found[record.site]
        partner = by_key.get(format_key(site, record.coords))
        if partner is not None:
            pairs.append(Pair(partner, record, how, layouts.target(partner, record, reference, port)))
    counts = Counter(how for _, how in matches.found.values())
    note = ", ".join(f"{n} by {how}" for how, n in counts.most_common())
    return pairs, (*weights, *((f"sites aligned without a name: {note}",) if note else ()))


def _match_weights(
    matches: Matches, reference: Trace, port: Trace, loose_ref: Sequence[Record], loose_port: Sequence[Record]
) -> tuple[str, ...]:
    """Pair the sites of modules with equal weights. Returns a note on weights that only one side has."""
    labels = root_label(reference.manifest.parameters), root_label(port.manifest.parameters)
    ran = _ran(reference, labels[0]), _ran(port, labels[1])
    left, right = (
        {name: print_of(one) for name, one in trace.manifest.parameters.items() if leaf_of(name) in paths}
        for trace, paths in zip((reference, port), ran, strict=True)
    )
    if not (left and right):
        return ()
    found = pair_prints(left, right)
    leaves, spread = leaves_of(found, left)
    weights = WeightMatch(leaves, {}, spread=spread)
    modules = match_containers(weights, ran[0].__contains__, ran[1].__contains__)
    match_modules(matches, modules, _firsts(loose_ref), _firsts(loose_port), labels)
    alone = [n for n in left if n not in found.values()], [n for n in right if n not in found]
    if not any(alone):
        return ()
    sides = (
        f"{len(names)} {side} ({', '.join(names[:3])})"
        for names, side in zip(alone, ("reference", "port"), strict=True)
        if names
    )
    return (f"weights without an equal on the other side: {', '.join(sides)}",)


def _match_nearest(
    matches: Matches, reference: Trace, port: Trace, loose_ref: Sequence[Record], loose_port: Sequence[Record]
) -> None:
    """Pair, between two pairs, records that are each other's nearest of their size: values that half precision has moved."""
    for left, right, _ in stretches(matches, loose_ref, loose_port):
        known = {
            id(one): found
            for side, trace in ((left, reference), (right, port))
            for one in side
            if (found := moments_of(one, trace))
        }
        distance = {
            (p.site, r.site): off(known[id(r)], known[id(p)])
            for p in right
            for r in left
            if id(r) in known and id(p) in known and math.prod(r.shape) == math.prod(p.shape)
        }
        for (p, r), d in sorted(distance.items(), key=lambda item: item[1]):
            if d <= _ROUNDED:
                matches.add(p, r, "value")


def _differs(
    matches: Matches, reference: Trace, port: Trace, loose_ref: Sequence[Record], loose_port: Sequence[Record]
) -> Callable[[str], bool]:
    """Return what tells of a paired port site whether its value is another one: where it is not, other ways may have led to it."""
    refs, ports = _firsts(loose_ref), _firsts(loose_port)

    def differs(site: str) -> bool:
        left = moments_of(refs[matches.found[site][0]], reference)
        right = moments_of(ports[site], port)
        return left is None or right is None or not near(left, right)

    return differs


def _ran(trace: Trace, label: str) -> set[str]:
    """Return the paths of the modules that ran (the root, called `label`, has the empty path)."""
    return {"" if module_of(record) == label else module_of(record) for record in trace}


def _firsts(records: Sequence[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(record.site, record)
    return found
