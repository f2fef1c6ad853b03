"""Pairing what names do not pair: by values, by the pattern of names that values reveal, and by order between what is already paired.

Two records hold the same numbers when their order-free moments agree; a layout is then searched. What a fault changes is paired by its neighbours: the
same template of names in another block, or the same place between two pairs.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.align.layouts import find_layout
from parity.trace import Record, Stats, Trace
from parity.trace.names import Target

NEAR = 2e-4
_SAME = 1e-4  # of the same quantity on the same inputs, up to the noise of float32
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


# -- by value ---------------------------------------------------------------------------------------------------------


def match_values(
    matches: Matches,
    reference: Trace,
    port: Trace,
    refs: Sequence[Record],
    ports: Sequence[Record],
    tolerance: float = NEAR,
) -> None:
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
        equal = [r for r, other in candidates if r.site not in matches.taken and near(moments, other, tolerance)]
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
    return None if s is None or s.count == 0 or s.min == s.max else moments_of_stats(s)


def moments_of_stats(s: Stats) -> tuple[float, ...]:
    """Return those moments that statistics hold."""
    return (max(abs(s.min), abs(s.max)), s.sum / s.count, s.sumsq / s.count, s.max, s.max - s.min)


def moments(value: Tensor) -> tuple[float, ...]:
    """Largest magnitude, mean, mean square, maximum, spread (0 for constants), and two that statistics do not hold.

    The last ones tell normalised values apart, whose means and mean squares are all alike.
    """
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    wide = torch.nan_to_num(value.detach().double().flatten(), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = torch.aminmax(wide)
    n = wide.numel()
    size = wide.abs()
    scale = float(size.max())
    wave = float(torch.sin(wide * (3.7 / scale)).sum()) / n * scale if scale > 0 else 0.0
    mean_square = float(wide.dot(wide)) / n
    return (scale, float(wide.sum()) / n, mean_square, float(high), float(high - low), float(size.sum()) / n, wave)


def near(a: tuple[float, ...], b: tuple[float, ...], tolerance: float = NEAR) -> bool:
    """Tell whether two sets of moments agree up to rounding, on the scale of the values."""
    return off(a, b) <= tolerance


def off(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the largest difference of two sets of moments, on the scale of the values; statistics alone have fewer moments."""
    scale = max(a[0], b[0])
    if scale == 0:
        return 0.0 if a[0] == b[0] else math.inf
    known = enumerate(zip(a, b, strict=False))
    return max(abs(x - y) / (scale * scale if i == 2 else scale) for i, (x, y) in known)


def module_of(record: Record) -> str:
    """Return the module whose call shows the record: an input belongs to the module that gets it (its `module` is the caller that made it)."""
    module, found, _ = record.site.partition(".in.")
    return module if found and record.role == "in" else record.module


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
    """Carry pairs over to other blocks: `blocks.0.attn1.to_q` = `blocks.0.self_attn.q` says the same of block 1.

    The outermost index may be new; the others count places inside a block (`net.2` = `ffn.2` says nothing of `net.1`).
    """
    known = set(refs)
    templates: dict[tuple[str, tuple[str, ...]], str] = {}
    for site, (ref, _) in list(matches.found.items()):
        numbers = re.findall(r"\d+", site)
        if numbers == re.findall(r"\d+", ref):
            templates.setdefault((_blank(site), tuple(numbers[1:])), _blank(ref))
    for site in dict.fromkeys(ports):
        numbers = re.findall(r"\d+", site)
        template = templates.get((_blank(site), tuple(numbers[1:])))
        if site in matches.found or template is None:
            continue
        places = iter(numbers)
        guess = "".join(next(places) if part == "#" else part for part in re.split("(#)", template))
        if guess in known:
            matches.add(site, guess, "name pattern")


def _blank(site: str) -> str:
    return re.sub(r"\d+", "#", site)


# -- by order ---------------------------------------------------------------------------------------------------------


def match_between(
    matches: Matches, refs: Sequence[Record], ports: Sequence[Record], differs: Callable[[str], bool] | None = None
) -> set[str]:
    """Pair what lies alone between the same two pairs on both sides, where as many of a size and role are on either side.

    differs: tells of a paired port site whether its value is another one; only stretches that end in such a site (or in nothing) are paired.
    Returns the ends of stretches in which something was paired.
    """
    ends: set[str] = set()
    for left, right, end in stretches(matches, refs, ports):
        if not (left and right) or (differs is not None and end and not differs(end)):
            continue
        found = False
        for of_key_ref, of_key_port in _same_kinds(left, right):
            for r, p in zip(of_key_ref, of_key_port, strict=True):
                found |= matches.add(p.site, r.site, "order and shape")
        if found:
            ends.add(end)
    return ends


def stretches(
    matches: Matches, refs: Sequence[Record], ports: Sequence[Record]
) -> Iterator[tuple[list[Record], list[Record], str]]:
    """Yield what lies alone between two pairs that are neighbours on both sides, and the port site that ends it ("" for the end of the run)."""
    ref_sites, port_sites = _firsts(refs), _firsts(ports)
    position = {r.site: i for i, r in enumerate(ref_sites)}
    start_ref = start_port = 0
    anchors = [
        (i, position[matches.found[p.site][0]])
        for i, p in enumerate(port_sites)
        if p.site in matches.found and matches.found[p.site][0] in position
    ]
    for end_port, end_ref in [*_increasing(anchors), (len(port_sites), len(ref_sites))]:
        left = [r for r in ref_sites[start_ref:end_ref] if r.site not in matches.taken]
        right = [p for p in port_sites[start_port:end_port] if p.site not in matches.found]
        yield left, right, port_sites[end_port].site if end_port < len(port_sites) else ""
        start_port, start_ref = end_port + 1, end_ref + 1


def _same_kinds(left: Sequence[Record], right: Sequence[Record]) -> Iterator[tuple[list[Record], list[Record]]]:
    """Yield the records of each size and role that both sides have equally many of."""
    kinds: dict[tuple[int, bool, bool], tuple[list[Record], list[Record]]] = {}
    for side, records in enumerate((left, right)):
        for record in records:
            key = (math.prod(record.shape), record.role == "in", record.is_float)
            kinds.setdefault(key, ([], []))[side].append(record)
    yield from (pair for pair in kinds.values() if len(pair[0]) == len(pair[1]))


def _increasing(anchors: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Keep the most anchors that move forward on both sides (a longest increasing subsequence)."""
    tails: list[int] = []  # reference positions that end the best runs of each length
    ends: list[int] = []
    before: list[int] = []
    for i, (_, ref) in enumerate(anchors):
        place = bisect_left(tails, ref)
        before.append(ends[place - 1] if place else -1)
        if place == len(tails):
            tails.append(ref)
            ends.append(i)
        else:
            tails[place], ends[place] = ref, i
    kept: list[tuple[int, int]] = []
    i = ends[-1] if ends else -1
    while i >= 0:
        kept.append(anchors[i])
        i = before[i]
    return kept[::-1]


# -- by module --------------------------------------------------------------------------------------------------------


def match_siblings(matches: Matches, refs: Mapping[str, Record], ports: Mapping[str, Record]) -> None:
    """Pair the other sites of a module one site of which is paired: those with equal endings (`.1`, `.in.x`)."""
    partners: dict[str, Counter[str]] = {}
    for site, (ref, _) in matches.found.items():
        if site in ports and ref in refs and ports[site].role == refs[ref].role:
            partners.setdefault(module_of(ports[site]), Counter())[module_of(refs[ref])] += 1
    claimed = Counter(max(votes, key=votes.__getitem__) for votes in partners.values())
    by_module: dict[str, list[Record]] = {}
    for r in refs.values():
        by_module.setdefault(module_of(r), []).append(r)
    for p in ports.values():
        votes = partners.get(module_of(p))
        if p.site in matches.found or not votes:
            continue
        module = max(votes, key=votes.__getitem__)
        if claimed[module] > 1 or len(votes) > 1:
            continue
        for r in by_module.get(module, []):
            ending = p.site.removeprefix(module_of(p))
            if r.site == module + ending and r.role == p.role and math.prod(r.shape) == math.prod(p.shape):
                matches.add(p.site, r.site, "module")
                break


def agree(reference: Trace, ref: Record, port: Trace, other: Record) -> bool:
    """Tell whether two paired records hold the same numbers (in any order when their shapes differ)."""
    r, p = reference.tensor(ref.key), port.tensor(other.key)
    if r is None or p is None or r.numel() != p.numel() or r.numel() == 0:
        return True
    if r.shape != p.shape or r.is_complex() or p.is_complex():
        return near(moments(r), moments(p), _SAME)
    r, p = r.detach().double(), p.detach().double()
    norm = float(torch.linalg.vector_norm(r))
    return float(torch.linalg.vector_norm(r - p)) <= _SAME * (norm or 1.0)


Shapes = tuple[tuple[int, ...], tuple[int, ...]]

# -- layouts ----------------------------------------------------------------------------------------------------------


class Layouts:
    """Layouts of site pairs: found where the values agree, remembered for equal shapes where they do not.

    One pair of shapes has one layout, the one that most pairs agree on; equal shapes have none. A fault that reorders a value must not be taken for a layout.
    """

    def __init__(self) -> None:
        self._votes: dict[Shapes, Counter[str]] = {}
        self._sizes: dict[tuple[Shapes, str], Mapping[str, int]] = {}
        self._by_site: dict[str, tuple[str, Mapping[str, int]]] = {}

    def learn(self, r: Tensor | None, p: Tensor | None) -> None:
        """Let a pair of values vote for the layout of their shapes."""
        if r is None or p is None or r.shape == p.shape:
            return
        found = find_layout(r, p)
        if found is not None and found[2] <= 0.02:
            shapes = (tuple(r.shape), tuple(p.shape))
            self._votes.setdefault(shapes, Counter())[found[0]] += 1
            self._sizes.setdefault((shapes, found[0]), found[1])

    def target(self, ref: Record, port: Record, reference: Trace, other: Trace) -> Target | None:
        """Return how the port's record is brought to the reference's layout; None when it already has it."""
        r, p = reference.tensor(ref.key), other.tensor(port.key)
        pattern, sizes = self.find(ref.site, ref.shape, port.shape, r, p)
        return Target(ref.site, pattern, sizes) if pattern else None

    def find(
        self, site: str, ref_shape: tuple[int, ...], port_shape: tuple[int, ...], r: Tensor | None, p: Tensor | None
    ) -> tuple[str, Mapping[str, int]]:
        """Return (einops pattern, axis sizes); an empty pattern for the same layout or when none fits."""
        shapes = (tuple(ref_shape), tuple(port_shape))
        if shapes[0] == shapes[1]:
            return "", {}
        if site not in self._by_site:
            if shapes not in self._votes:
                self.learn(r, p)
            self._by_site[site] = self._elected(shapes) or self._nearest(r, p)
        return self._by_site[site]

    def known(self, ref_shape: tuple[int, ...], port_shape: tuple[int, ...]) -> bool:
        """Tell whether values have shown the layout of these shapes."""
        shapes = (tuple(ref_shape), tuple(port_shape))
        return shapes[0] == shapes[1] or shapes in self._votes

    def _elected(self, shapes: Shapes) -> tuple[str, Mapping[str, int]] | None:
        votes = self._votes.get(shapes)
        if not votes:
            return None
        pattern = max(votes, key=votes.__getitem__)
        return pattern, self._sizes[shapes, pattern]

    def _nearest(self, r: Tensor | None, p: Tensor | None) -> tuple[str, Mapping[str, int]]:
        """No pair of these shapes agrees: take the arrangement with the smallest error."""
        found = find_layout(r, p) if r is not None and p is not None else None
        return (found[0], found[1]) if found is not None else ("", {})
