"""Edits worth trying: which of the port's values or operands could take which of the reference's, near where the two part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from .graph import MOVES, Graph
from .search import Candidate, Search

MOST_VALUES = 12  # candidates of each side at one place


def candidates(search: Search, ref_known: set[int], port_known: set[int]) -> Iterator[Candidate]:
    ref, port = search.reference, search.port
    open_ref, open_port = unknown_values(ref, ref_known), unknown_values(port, port_known)
    starts, ref_starts = _starts(port, open_port), _starts(ref, open_ref)
    unknown_ref, unknown_port = (
        list(dict.fromkeys([*_in_order(g, u)[:MOST_VALUES], g.end])) for g, u in ((ref, open_ref), (port, open_port))
    )
    unknown_port += _reads(port, open_port)
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
    yield from _exchanges(search, port_known, open_port)
    yield from _orders(search, starts)


def _reads(graph: Graph, unknown: set[int]) -> list[int]:
    """Return the parts of what an earlier call kept that are read here."""
    used = {v for i, given in enumerate(graph.inputs) if graph.ops[i].name not in MOVES for v in given}
    cuts = (v for v in sorted(unknown & used) if v in graph.made and graph.ops[graph.made[v]].name in MOVES)
    return [v for v in cuts if not graph.ops[graph.made[v]].earlier and graph.is_kept(v)][:MOST_VALUES]


def unknown_values(graph: Graph, known: set[int]) -> set[int]:
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


def _exchanges(search: Search, known: set[int], unknown: set[int]) -> Iterator[Candidate]:
    """Two equal parts of one value, or two known values of one shape, change places."""
    port = search.port
    parts: dict[int, list[int]] = {}
    parts[len(port.values)] = _given(port, known, unknown)
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


def _given(graph: Graph, known: set[int], unknown: set[int]) -> list[int]:
    """Return the known values that unknown ones are made of, before they were moved."""
    makers = {graph.made[v] for v in unknown if v in graph.made}
    found: dict[int, None] = {}
    for i in sorted(makers):
        for v in graph.inputs[i] if graph.ops[i].name not in MOVES else ():
            while v in graph.made and graph.ops[graph.made[v]].name in MOVES and graph.inputs[graph.made[v]]:
                v = graph.inputs[graph.made[v]][0]
            if v in known and graph.values[v].dim() > 1:
                found[v] = None
    return list(found)[:6]


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
