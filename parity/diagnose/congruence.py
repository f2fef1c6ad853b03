"""The fewest edits after which both sides' operations give corresponding values.

Values with the same numbers, in any layout, correspond. From the diverging value of each side, the *unknown* operations are those that made numbers which
the other side does not have; they start where every input is known. An edit takes one value of the reference for one of the port (or for one operand of an
operation); the port's operations then run again from there. When the reference's diverging value comes out, the edit explains the difference; when only more
of the port's values become known, the search goes on from the next unknown one. Of the edits that explain, the one whose regions hold the fewest operations counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, permutations, product

import torch
from torch import Tensor

from parity.capture.operations import Op

from .correspondence import Layouts, ends_order
from .graph import MOVES, Graph
from .prints import CLOSE, COARSE, HIDDEN, Prints, print_of

HIDING = frozenset(["add", "where", "masked_fill"])
MOST_VALUES = 12  # candidates of each side at one place
MOST_LAYOUTS = 24  # of all values of one candidate
MOST_BETWEEN = 8  # operations between two known values that may be what one side leaves out
SMALL = 6  # operations of an explanation that is not looked into again with rounded numbers
MOST_EDITS = 24  # of one explanation, repeated ones counted each


@dataclass(frozen=True)
class Region:
    """Operations of one side, in order; `operands` are the known values that go in and did not come from the region."""

    ops: tuple[Op, ...]
    places: tuple[int, ...] = ()  # in the side's log
    operands: tuple[Tensor, ...] = ()

    @property
    def told(self) -> tuple[Op, ...]:
        """The operations that do more than move numbers; all of them when none does."""
        return tuple(op for op in self.ops if op.name not in MOVES) or self.ops


@dataclass(frozen=True)
class Edit:
    """One assumed correspondence: what the reference runs, what the port runs there, and both results.

    kind: `replaced` (a result), `operand` (something else goes into the port's operation), `exchanged` (two values changed places),
    `order` (the operands of one operation).
    """

    reference: Region
    port: Region
    kind: str
    value: Tensor  # of the reference, in the port's layout
    other: Tensor  # of the port
    at: tuple[int, ...]  # the port's operation, and which operands or results
    user: Op | None = None  # the port's operation that the operand goes into
    which: int = -1  # the reference's value, in its graph
    times: int = 1


@dataclass(frozen=True)
class Explanation:
    """Edits that explain; `share` is what they leave of the difference."""

    edits: tuple[Edit, ...]
    share: float
    graphs: tuple[Graph, Graph]

    @property
    def size(self) -> int:
        """Count the operations in all regions, those that only move numbers left out."""
        return sum(1 + len(region.told) for e in self.edits for region in (e.reference, e.port))


@dataclass
class Search:
    """What is known while edits are looked for."""

    reference: Graph
    port: Graph
    wanted: Tensor  # the reference's diverging value, float64
    given: Tensor  # the port's, in the same layout
    whole: float  # norm of the difference
    limit: float  # share of the difference that may remain
    until: float
    close: float  # relative: what counts as the same number
    ordered: bool = False  # whether the same numbers in another order count as others
    most: int = 10**9  # operations of an edit that settles everything at once
    replaced: dict[int, Tensor] = field(default_factory=dict)
    edges: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    fresh: dict[int, Tensor] = field(default_factory=dict)
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.order = ends_order(self.port.values[self.port.end], self.given)
        self.ref_cone = self.reference.cone(self.reference.end)
        self.port_cone = self.port.cone(self.port.end)
        self.layouts = Layouts(self.reference, self.port, self.close, self.ordered)
        self.ref_values = [v for i in self.ref_cone for v in (*self.reference.sources(i), *self.reference.results(i))]
        self.port_values = [v for i in self.port_cone for v in (*self.port.sources(i), *self.port.results(i))]
        self.ref_prints = Prints((self.reference.print(v) for v in set(self.ref_values)), self.close, self.ordered)

    def late(self) -> bool:
        if time.process_time() > self.until:
            self.exhausted = True
        return self.exhausted

    def known(self) -> tuple[set[int], set[int]]:
        """Return which values of the reference's and the port's cones the other side has, after the edits so far."""
        now = {v: print_of(self.fresh[v]) if v in self.fresh else self.port.print(v) for v in set(self.port_values)}
        have = Prints(now.values(), self.close, self.ordered)
        ref = {v for v in set(self.ref_values) if have.has(self.reference.print(v))}
        ours = {v for v, p in now.items() if self.ref_prints.has(p)}
        return _moved(self.reference, self.ref_cone, ref), _moved(self.port, self.port_cone, ours)

    def rest(self, fresh: Mapping[int, Tensor] | None) -> float:
        """Return the share of the difference that remains at the end; infinity when it could not be run."""
        if fresh is None or self.port.end not in fresh:
            return float("inf")
        value = fresh[self.port.end]
        if value.numel() != self.wanted.numel() or value.is_complex():
            return float("inf")
        flat = value.detach().double().flatten()
        flat = flat if self.order is None else flat[self.order]
        gap = float(torch.linalg.vector_norm(flat - self.wanted.flatten()))
        return gap / self.whole if gap == gap else float("inf")


def _moved(graph: Graph, cone: Sequence[int], known: set[int]) -> set[int]:
    """Return the known values with what only moves, repeats or cuts them."""
    known = set(known)
    for i in cone:
        if graph.ops[i].name in MOVES and i not in graph.writes and all(v in known for v in graph.inputs[i]):
            known.update(graph.outputs[i])
    return known


@dataclass(frozen=True)
class Candidate:
    """An edit to try: which of the port's values or operands take which of the reference's values, and the size of both regions."""

    size: int
    kind: str
    values: tuple[tuple[int, int], ...] = ()  # (port value, reference value)
    edges: tuple[tuple[tuple[int, int], int], ...] = ()  # ((operation, operand), reference value)


def explain(
    reference: Graph, port: Graph, r: Tensor, p: Tensor, limit: float, seconds: float
) -> tuple[Explanation | None, bool]:
    """Return the explanation by the fewest edits, None when none is found, and whether the time ran out first.

    r, p: the diverging values, float64. limit: the share of their difference that may remain.
    """
    whole = float(torch.linalg.vector_norm(p.flatten() - r.flatten())) if p.numel() == r.numel() else float("inf")
    until = time.process_time() + seconds
    best, late = None, False
    subtle = whole < 1e3 * COARSE * float(torch.linalg.vector_norm(r))
    closes = (CLOSE, COARSE) if subtle else (COARSE, CLOSE)
    for close, ordered in ((closes[0], True), (closes[0], False), (closes[1], True), (closes[1], False)):
        if late or (best is not None and best.size <= SMALL):
            break
        share = limit if close == CLOSE else min(0.02, limit * COARSE / CLOSE / 20)
        for most in (10**9, max(1, best.size // 3) if best is not None else 0):
            if not most or (best is not None and best.size <= SMALL):
                break
            search = Search(reference, port, r, p, whole, share, until, close, ordered, most)
            found = _search(search)
            late = late or search.exhausted
            if found is not None and (best is None or found.size < best.size):
                best = found
    return best, late


def _search(search: Search) -> Explanation | None:
    edits: list[Edit] = []
    while len(edits) < MOST_EDITS and not search.late():
        found = _next(search)
        if found is None:
            break
        new, share, settled = found
        edits += new
        if settled:
            return Explanation(_repeated(edits), share, (search.reference, search.port))
    return None


def _repeated(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Merge edits of the same lines: a repeated edit counts once."""
    from dataclasses import replace

    kept: dict[tuple[object, ...], Edit] = {}
    for edit in edits:
        key = (
            edit.kind,
            tuple((op.name, op.source) for op in edit.reference.told),
            tuple((op.name, op.source) for op in edit.port.told),
        )
        kept[key] = replace(kept[key], times=kept[key].times + 1) if key in kept else edit
    return tuple(kept.values())


def _next(search: Search) -> tuple[list[Edit], float, bool] | None:
    """Return the next edit: the smallest that settles the difference, else the one that makes most of the port's values known."""
    ref_known, port_known = search.known()
    best: tuple[float, Candidate, dict[int, Tensor], dict[int, Tensor], dict[tuple[int, int], Tensor], float] | None = (
        None
    )
    before = len(port_known)
    for candidate in sorted(_candidates(search, ref_known, port_known), key=lambda c: c.size):
        if search.late():
            break
        for replaced, edges in _filled(search, candidate):
            fresh = search.port.run(search.replaced | replaced, search.edges | edges, search.port_cone)
            share = search.rest(fresh)
            if fresh is None:
                continue
            if share <= search.limit and candidate.size <= search.most:
                return _edits(search, candidate, replaced, edges, ref_known, port_known), share, True
            if len(search.replaced) + len(search.edges) > MOST_EDITS or share == float("inf"):
                continue
            gain = _gain(search, fresh, port_known, replaced)
            if gain > 0 and (best is None or gain - candidate.size > best[0]):
                best = (gain - candidate.size, candidate, fresh, replaced, edges, share)
    if best is None or best[0] + best[1].size <= 0 or before < 0:
        return None
    _, candidate, fresh, replaced, edges, share = best
    found = _edits(search, candidate, replaced, edges, ref_known, port_known)
    search.replaced |= replaced
    search.edges |= edges
    search.fresh = fresh
    return found, share, False


def _gain(search: Search, fresh: Mapping[int, Tensor], known: set[int], given: Mapping[int, Tensor]) -> int:
    """Count the operations after the edit whose results become known."""
    gained = 0
    for i in search.port_cone:
        if search.port.ops[i].name in MOVES:
            continue
        for v in search.port.results(i):
            if v in fresh and v not in given and v not in known and search.ref_prints.has(print_of(fresh[v])):
                gained += 1
    return gained


def _filled(search: Search, candidate: Candidate) -> Iterator[tuple[dict[int, Tensor], dict[tuple[int, int], Tensor]]]:
    """Yield the candidate's values in each layout in which they can stand in the port."""
    targets = [(v, a) for v, a in candidate.values] + [(e, a) for e, a in candidate.edges]
    choices = []
    for target, a in targets:
        like = search.port.ops[target[0]].inputs[target[1]] if isinstance(target, tuple) else search.port.values[target]
        if isinstance(target, tuple) and search.port.ops[target[0]].outputs:
            result = search.port.ops[target[0]].outputs[0]
            if like.numel() < search.reference.values[a].numel() == result.numel():
                like = result.to(like.dtype)  # an operand that is spread over the result: another one may fill it
        choices.append(search.layouts.in_place_of(a, like))
    for picked in islice(product(*choices), MOST_LAYOUTS):
        values = {t: x for (t, _), x in zip(targets, picked, strict=True) if not isinstance(t, tuple)}
        edges = {t: x for (t, _), x in zip(targets, picked, strict=True) if isinstance(t, tuple)}
        yield values, edges


def _candidates(search: Search, ref_known: set[int], port_known: set[int]) -> Iterator[Candidate]:
    ref, port = search.reference, search.port
    open_ref, open_port = _open(ref, ref_known), _open(port, port_known)
    starts, ref_starts = _starts(port, open_port), _starts(ref, open_ref)
    unknown_ref, unknown_port = (
        list(dict.fromkeys([*_in_order(g, u)[:MOST_VALUES], g.end])) for g, u in ((ref, open_ref), (port, open_port))
    )
    given_ref = list(dict.fromkeys(v for i in ref_starts[:6] for v in ref.inputs[i]))[:MOST_VALUES]
    ref_cost = {v: _size(ref, v, ref_known) for v in unknown_ref}
    stands = {b: search.layouts.counterparts(b) for i in starts[:6] for b in port.inputs[i]}
    for b in unknown_port:
        cost = _size(port, b, port_known)
        for a in unknown_ref:
            yield Candidate(cost + ref_cost[a], "replaced", ((b, a),))
        for a in dict.fromkeys([*(a for found in stands.values() for a in found), *given_ref]):
            yield Candidate(cost, "replaced", ((b, a),))
    uses: dict[int, list[tuple[int, int]]] = {}
    for i in starts[:6]:
        for k, b in enumerate(port.inputs[i]):
            uses.setdefault(b, []).append((i, k))
    for b, edges in uses.items():
        for group in [edges, *([[e] for e in edges] if len(edges) > 1 else [])]:
            for a in [*unknown_ref, *given_ref]:
                if a not in stands.get(b, ()):
                    yield Candidate(ref_cost.get(a, 1), "operand", (), tuple((e, a) for e in group))
    yield from _constants(search, ref_known, port_known)
    yield from _joins(search, ref_known, port_known, open_ref, open_port)
    yield from _exchanges(search, port_known)
    yield from _orders(search, starts)


def _open(graph: Graph, known: set[int]) -> set[int]:
    """Return the unknown values that reach the end through unknown values only: another spelling of a known value is no difference."""
    found: set[int] = set()
    todo = [graph.end]
    while todo:
        v = todo.pop()
        if v in found or (v in known and v != graph.end):
            continue
        found.add(v)
        todo += graph.sources(graph.made[v]) if v in graph.made else []
    return found


def _starts(graph: Graph, unknown: set[int]) -> list[int]:
    """Return the operations with an unknown result whose inputs are all known."""
    makers = sorted({graph.made[v] for v in unknown if v in graph.made})
    return [i for i in makers if not any(v in unknown and v in graph.made for v in graph.sources(i))]


def _in_order(graph: Graph, unknown: set[int]) -> list[int]:
    """Return the unknown values that every path to the end goes through first, then the others, in order."""
    made = {v for v in unknown if v in graph.made}
    gates = _gates(graph, made) if len(made) <= 400 else []
    order = list(dict.fromkeys([*gates, *sorted(made, key=lambda v: graph.made[v])]))
    return [
        v
        for v in order
        if graph.ops[graph.made[v]].name not in MOVES or v == graph.end or graph.made[v] in graph.writes
    ]


def _gates(graph: Graph, unknown: set[int]) -> list[int]:
    """Return the unknown values without which no unknown value reaches the end, nearest to the start first."""
    if graph.end not in unknown:
        return []
    users: dict[int, list[int]] = {}
    for v in unknown:
        i = graph.made.get(v)
        for u in graph.sources(i) if i is not None else ():
            if u in unknown:
                users.setdefault(u, []).append(v)
    first = [
        v for v in unknown if not any(u in unknown for u in (graph.sources(graph.made[v]) if v in graph.made else ()))
    ]
    gates = []
    for gate in sorted(unknown):
        reached: set[int] = set()
        todo = [v for v in first if v != gate]
        while todo:
            v = todo.pop()
            if v in reached:
                continue
            reached.add(v)
            todo += [u for u in users.get(v, ()) if u != gate]
        if gate == graph.end or graph.end not in reached:
            gates.append(gate)
    return sorted(gates, key=lambda v: graph.made.get(v, -1))


def _size(graph: Graph, v: int, known: set[int]) -> int:
    """Count the operations between the known values and v that do more than move numbers."""
    return sum(graph.ops[i].name not in MOVES for i in graph.cone(v, known - {v}))


def _constants(search: Search, ref_known: set[int], port_known: set[int]) -> Iterator[Candidate]:
    """Every value from outside that only one side has is taken from the reference, where both sides have as many of each shape."""
    ref, port = search.reference, search.port

    def lone(graph: Graph, cone: Sequence[int], known: set[int]) -> list[int]:
        return list(
            dict.fromkeys(
                v for i in cone for v in graph.inputs[i]
                if v not in graph.made and v not in known and graph.values[v].is_floating_point()
            )
        )  # fmt: skip

    ours, theirs = lone(port, search.port_cone, port_known), lone(ref, search.ref_cone, ref_known)
    pairs = []
    for b in ours:
        a = next((a for a in theirs if ref.values[a].shape == port.values[b].shape), None)
        if a is None:
            return
        theirs.remove(a)
        pairs.append((b, a))
    if pairs and not theirs:
        edges = tuple(
            ((i, k), a) for b, a in pairs for i in search.port_cone for k, v in enumerate(port.inputs[i]) if v == b
        )
        yield Candidate(1, "constants", (), edges)


def _joins(
    search: Search, ref_known: set[int], port_known: set[int], open_ref: set[int], open_port: set[int]
) -> Iterator[Candidate]:
    """Several operands of one operation differ at once: they take those of the same operation of the reference."""
    ref, port = search.reference, search.port

    def joins(graph: Graph, cone: Sequence[int], unknown: set[int]) -> list[tuple[int, list[int]]]:
        found = ((i, list(dict.fromkeys(v for v in graph.inputs[i] if v in unknown))) for i in cone)
        return [(i, given) for i, given in found if 2 <= len(given) <= 3][:MOST_VALUES]

    theirs = joins(ref, search.ref_cone, open_ref)
    for j, ours in joins(port, search.port_cone, open_port):
        for i, given in theirs:
            if ref.ops[i].name != port.ops[j].name or len(given) != len(ours):
                continue
            cost = sum(_size(port, b, port_known) for b in ours) + sum(_size(ref, a, ref_known) for a in given)
            for order in permutations(given):
                yield Candidate(cost, "replaced", tuple(zip(ours, order, strict=True)))


def _exchanges(search: Search, known: set[int]) -> Iterator[Candidate]:
    """Two equal parts of one value, both known, change places."""
    port = search.port
    parts: dict[int, list[int]] = {}
    for i in search.port_cone:
        op = port.ops[i]
        if len(op.outputs) > 1:
            parts.setdefault(-i - 1, []).extend(port.outputs[i])
        elif op.name in ("slice", "select") and port.inputs[i]:
            parts.setdefault(port.inputs[i][0], []).append(port.outputs[i][0])
    for found in parts.values():
        for a, b in combinations([v for v in dict.fromkeys(found) if v in known][:9], 2):
            if port.values[a].shape == port.values[b].shape:
                for x in search.layouts.counterparts(a)[:1]:
                    for y in search.layouts.counterparts(b)[:1]:
                        if x != y:
                            yield Candidate(1, "exchanged", ((a, y), (b, x)))


def _orders(search: Search, starts: Sequence[int]) -> Iterator[Candidate]:
    """The operands of one operation in another order."""
    port = search.port
    for i in starts[:6]:
        given = port.inputs[i]
        if not 2 <= len(given) <= 4:
            continue
        stands = [search.layouts.counterparts(v)[:1] for v in given]
        if not all(stands):
            continue
        for order in list(permutations(range(len(given))))[1:]:
            if port.ops[i].name == "cat" or all(
                port.ops[i].inputs[a].shape == port.ops[i].inputs[b].shape for a, b in enumerate(order)
            ):
                edges = tuple(((i, k), stands[m][0]) for k, m in enumerate(order) if k != m)
                yield Candidate(1, "order", (), edges)


def _edits(
    search: Search,
    candidate: Candidate,
    replaced: Mapping[int, Tensor],
    edges: Mapping[tuple[int, int], Tensor],
    ref_known: set[int],
    port_known: set[int],
) -> list[Edit]:
    if candidate.kind == "constants":
        each = [Candidate(0, "operand", (), (edge,)) for edge in candidate.edges]
        return [_edit(search, one, replaced, edges, ref_known, port_known) for one in each]
    if candidate.kind != "replaced":
        return [_edit(search, candidate, replaced, edges, ref_known, port_known)]
    each = [Candidate(0, candidate.kind, (pair,)) for pair in candidate.values]
    return [_edit(search, one, replaced, edges, ref_known, port_known) for one in each]


def _edit(
    search: Search,
    candidate: Candidate,
    replaced: Mapping[int, Tensor],
    edges: Mapping[tuple[int, int], Tensor],
    ref_known: set[int],
    port_known: set[int],
) -> Edit:
    port = search.port
    if candidate.values:
        b, a = candidate.values[0]
        region = _region(port, b, port_known) if candidate.kind == "replaced" else _alone(port, port.made[b])
        value, other = replaced[b], search.fresh.get(b, port.values[b])
        at: tuple[int, ...] = (port.made.get(b, -1), *(v for v, _ in candidate.values))
        user = None
    else:
        (i, k), a = candidate.edges[0]
        region = Region(()) if candidate.kind == "operand" else _alone(port, i)
        value, other = edges[i, k], port.ops[i].inputs[k]
        if port.ops[i].name in HIDING and port.ops[i].outputs[0].shape == value.shape and bool((value <= HIDDEN).any()):
            other = port.ops[i].outputs[0]  # what is hidden shows after the mask
        at, user = (i, *(k for (_, k), _ in candidate.edges)), port.ops[i]
    theirs = _region(search.reference, a, ref_known) if a not in ref_known else Region(())
    if candidate.kind == "operand" and not theirs.ops:
        theirs, region = _between(search, a, port.inputs[i][k])
    return Edit(theirs, region, candidate.kind, value, other, at, user, a)


def _between(search: Search, a: int, b: int) -> tuple[Region, Region]:
    """Return what lies between two known values: what the reference runs from the port's to its own, or the port the other way round."""
    ref, port = search.reference, search.port
    for graph, end, start in (
        (ref, a, set(search.layouts.counterparts(b))),
        (port, b, {v for v in range(len(port.values)) if a in search.layouts.counterparts(v)}),
    ):
        cone = graph.cone(end, start - {end})
        if (
            start & {v for i in cone for v in graph.sources(i)}
            and sum(graph.ops[i].name not in MOVES for i in cone) <= MOST_BETWEEN
        ):
            region = _region(graph, end, start | {v for v in range(len(graph.values)) if v not in graph.made})
            return (region, Region(())) if graph is ref else (Region(()), region)
    return Region(()), Region(())


def _alone(graph: Graph, i: int) -> Region:
    return Region((graph.ops[i],), (i,), tuple(graph.ops[i].inputs))


def _region(graph: Graph, v: int, known: set[int]) -> Region:
    """Return the operations that make v from known values."""
    cone = graph.cone(v, known - {v})
    made = {u for i in cone for u in graph.results(i)}
    given = dict.fromkeys(u for i in cone for u in graph.inputs[i] if u not in made)
    return Region(tuple(graph.ops[i] for i in cone), tuple(cone), tuple(graph.values[u] for u in given))
