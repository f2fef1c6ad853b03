"""The fewest edits after which both sides' operations give corresponding values.

Values with the same numbers, in any layout, correspond. From the diverging value of each side, the *unknown* operations are those that made numbers which
the other side does not have; they start where every input is known. An edit takes one value of the reference for one of the port (or for one operand of an
operation); the port's operations then run again from there. When the reference's diverging value comes out, the edit explains the difference; when only more
of the port's values become known, the search goes on from the next unknown one. Of the edits that explain, the one whose regions hold the fewest operations counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

import torch
from torch import Tensor

from .graph import MOVES, Graph
from .prints import CLOSE, COARSE, HIDDEN, near, print_of
from .proposals import candidates
from .search import Candidate, Edit, Explanation, Region, Search

HIDING = frozenset(["add", "where", "masked_fill"])
MOST_LAYOUTS = 24  # of all values of one candidate
MOST_BETWEEN = 8  # operations between two known values that may be what one side leaves out
SMALL = 6  # operations of an explanation that is not looked into again with rounded numbers
MOST_EDITS = 24  # of one explanation, repeated ones counted each


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
    for candidate in sorted(candidates(search, ref_known, port_known), key=lambda c: c.size):
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
        region = _region(port, b, port_known) if candidate.kind == "replaced" else _maker(port, b)
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
        (
            port,
            b,
            {v for v in range(len(port.values)) if near(port.print(v), ref.print(a), search.close, search.ordered)},
        ),
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
    kept = any(graph.is_kept(v) for v in graph.inputs[i])
    return Region((graph.ops[i],), (i,), tuple(graph.ops[i].inputs), kept)


def _maker(graph: Graph, v: int) -> Region:
    return _alone(graph, graph.made[v]) if v in graph.made else Region(())


def _region(graph: Graph, v: int, known: set[int]) -> Region:
    """Return the operations that make v from known values."""
    cone = graph.cone(v, known - {v})
    made = {u for i in cone for u in graph.results(i)}
    given = dict.fromkeys(u for i in cone for u in graph.inputs[i] if u not in made)
    kept = any(graph.is_kept(u) for u in given)
    return Region(
        tuple(graph.ops[i] for i in cone),
        tuple(cone),
        tuple(graph.values[u] for u in given),
        kept,
        any(u in graph.made for u in given),
    )
