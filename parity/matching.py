"""Pairing what names do not pair: by values, by the pattern of names that values reveal, and by order between what is already paired.

Two records hold the same numbers when their order-free moments agree; a layout is then searched. What a fault changes is paired by its neighbours: the
same template of names in another block, or the same place between two pairs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.align import Pair
from parity.layouts import find_layout
from parity.names import Target
from parity.trace import Record, Trace

_NEAR = 2e-4
_FEWEST = 4  # values of fewer elements prove nothing


@dataclass
class Matches:
    """Site pairs found so far: port site -> (reference site, evidence)."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def add(self, port: str, reference: str, how: str) -> bool:
        if port in self.found or reference in self.taken:
            return False
        self.found[port] = (reference, how)
        self.taken.add(reference)
        return True


def match_by_value(
    reference: Trace, port: Trace, loose_ref: Sequence[Record], loose_port: Sequence[Record]
) -> tuple[list[Pair], tuple[str, ...]]:
    """Pair records that names left alone. Returns the pairs and one note on the evidence."""
    matches = Matches()
    match_values(matches, reference, port, loose_ref, loose_port)
    match_templates(matches, [r.site for r in loose_ref], [p.site for p in loose_port])
    match_between(matches, loose_ref, loose_port)
    layouts = Layouts()
    by_key = {r.key: r for r in loose_ref}
    pairs = []
    for record in loose_port:
        if record.site not in matches.found:
            continue
        site, how = matches.found[record.site]
        partner = by_key.get(type_key(site, record))
        if partner is not None:
            pairs.append(Pair(partner, record, how, layouts.target(partner, record, reference, port)))
    counts = Counter(how for _, how in matches.found.values())
    note = ", ".join(f"{n} by {how}" for how, n in counts.most_common())
    return pairs, ((f"sites aligned without a name: {note}",) if note else ())


def type_key(site: str, record: Record) -> str:
    """Return the key that `record` would have at another site."""
    from parity.result import format_key

    return format_key(site, record.coords)


# -- by value ---------------------------------------------------------------------------------------------------------


def match_values(matches: Matches, reference: Trace, port: Trace, refs: Sequence[Record], ports: Sequence[Record]) -> None:
    """Pair sites whose first records hold the same numbers, in order of execution; the first free partner of equal coordinates wins."""
    pool: dict[tuple[int, str], list[tuple[Record, tuple[float, ...]]]] = {}
    for record in _firsts(refs):
        moments = moments_of(record, reference)
        if moments is not None:
            pool.setdefault((math.prod(record.shape), str(dict(record.coords))), []).append((record, moments))
    for record in _firsts(ports):
        moments = moments_of(record, port)
        if moments is None or record.site in matches.found:
            continue
        candidates = pool.get((math.prod(record.shape), str(dict(record.coords))), [])
        equal = [r for r, other in candidates if r.site not in matches.taken and near(moments, other)]
        if equal:
            best = max(equal, key=lambda r: (r.role == record.role, _alike(r.site, record.site), -r.order))
            matches.add(record.site, best.site, "value")


def moments_of(record: Record, trace: Trace) -> tuple[float, ...] | None:
    """Return order-free moments of a record; None when it is too small or too plain to prove anything."""
    if math.prod(record.shape) < _FEWEST:
        return None
    value = trace.tensor(record.key)
    if value is not None:
        found = moments(value)
        return None if found[4] == 0 else found
    s = record.stats
    if s is None or s.count == 0 or s.min == s.max:
        return None
    return (max(abs(s.min), abs(s.max)), s.sum / s.count, s.sumsq / s.count, s.max, 1.0)


def moments(value: Tensor) -> tuple[float, ...]:
    """Largest magnitude, mean, mean square, maximum, and a measure of spread (0 for constants)."""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    wide = torch.nan_to_num(value.detach().double().flatten(), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = torch.aminmax(wide)
    n = wide.numel()
    return (float(wide.abs().max()), float(wide.sum()) / n, float(wide.dot(wide)) / n, float(high), float(high - low))


def near(a: tuple[float, ...], b: tuple[float, ...], tolerance: float = _NEAR) -> bool:
    """Tell whether two sets of moments agree up to rounding, on the scale of the values."""
    scale = max(a[0], b[0])
    if scale == 0:
        return a[0] == b[0]
    limits = (scale, scale, scale * scale, scale)
    return all(abs(x - y) <= tolerance * limit for x, y, limit in zip(a, b, limits, strict=False))


def _firsts(records: Sequence[Record]) -> list[Record]:
    seen: dict[str, Record] = {}
    for record in records:
        seen.setdefault(record.site, record)
    return list(seen.values())


def _alike(left: str, right: str) -> int:
    """Return how many digits and words two names share, for ties between repeated values."""
    a, b = Counter(re.findall(r"\d+|[a-z]+", left.lower())), Counter(re.findall(r"\d+|[a-z]+", right.lower()))
    return sum((a & b).values())


# -- by the pattern of names ------------------------------------------------------------------------------------------


def match_templates(matches: Matches, refs: Sequence[str], ports: Sequence[str]) -> None:
    """Carry pairs over to other indices: `blocks.0.attn1.to_q` = `blocks.0.self_attn.q` says the same of block 1."""
    known = set(refs)
    templates: dict[str, str] = {}
    for site, (ref, _) in list(matches.found.items()):
        if re.findall(r"\d+", site) == re.findall(r"\d+", ref):
            templates.setdefault(_blank(site), _blank(ref))
    for site in dict.fromkeys(ports):
        template = templates.get(_blank(site))
        if site in matches.found or template is None:
            continue
        numbers = iter(re.findall(r"\d+", site))
        guess = re.sub("#", lambda _, numbers=numbers: next(numbers), template)
        if guess in known:
            matches.add(site, guess, "name pattern")


def _blank(site: str) -> str:
    return re.sub(r"\d+", "#", site)


# -- by order ---------------------------------------------------------------------------------------------------------


def match_between(matches: Matches, refs: Sequence[Record], ports: Sequence[Record]) -> None:
    """Pair what lies alone between the same two pairs on both sides, when the sizes fit one to one in order."""
    ref_sites, port_sites = _firsts(refs), _firsts(ports)
    position = {r.site: i for i, r in enumerate(ref_sites)}
    start_ref = start_port = 0
    anchors = [(i, position[matches.found[p.site][0]]) for i, p in enumerate(port_sites) if p.site in matches.found and matches.found[p.site][0] in position]
    for end_port, end_ref in [*_increasing(anchors), (len(port_sites), len(ref_sites))]:
        left = [r for r in ref_sites[start_ref:end_ref] if r.site not in matches.taken]
        right = [p for p in port_sites[start_port:end_port] if p.site not in matches.found]
        sizes = [(math.prod(r.shape), r.role == "in") for r in left]
        if left and sizes == [(math.prod(p.shape), p.role == "in") for p in right]:
            for r, p in zip(left, right, strict=True):
                matches.add(p.site, r.site, "order and shape")
        start_port, start_ref = end_port + 1, end_ref + 1


def _increasing(anchors: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Keep anchors that move forward on both sides (a greedy increasing run)."""
    kept: list[tuple[int, int]] = []
    for port, ref in anchors:
        if not kept or ref > kept[-1][1]:
            kept.append((port, ref))
    return kept


# -- layouts ----------------------------------------------------------------------------------------------------------


class Layouts:
    """Layouts of site pairs: found where the values agree, remembered for equal shapes where they do not."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[str, Mapping[str, int]]] = {}
        self._by_site: dict[str, tuple[str, Mapping[str, int]]] = {}

    def target(self, ref: Record, port: Record, reference: Trace, other: Trace) -> Target | None:
        """Return how the port's record is brought to the reference's layout; None when it already has it."""
        r, p = reference.tensor(ref.key), other.tensor(port.key)
        pattern, sizes = self.find(ref.site, ref.shape, port.shape, r, p)
        return Target(ref.site, pattern, sizes) if pattern else None

    def find(
        self, site: str, ref_shape: tuple[int, ...], port_shape: tuple[int, ...], r: Tensor | None, p: Tensor | None
    ) -> tuple[str, Mapping[str, int]]:
        """Return (einops pattern, axis sizes); an empty pattern for the same layout or when none fits."""
        if site in self._by_site:
            return self._by_site[site]
        shapes = (tuple(ref_shape), tuple(port_shape))
        answer: tuple[str, Mapping[str, int]] = ("", {})
        if r is not None and p is not None:
            found = find_layout(r, p)
            if found is not None and found[2] <= 0.02:
                answer = (found[0], found[1])
                self._by_shape.setdefault(shapes, answer)
            elif shapes in self._by_shape:
                answer = self._by_shape[shapes]
            elif found is not None and (found[2] < 0.5 or shapes[0] != shapes[1]):
                answer = (found[0], found[1])
        self._by_site[site] = answer
        return answer
