"""One side's operations as a graph of values that can run again with some of them replaced.

A value is what one operation made, or what came from outside (a weight, an input, a table). In-place writes are followed through memory: a write into a
view makes a new value of every view of the same storage that is read later, so a cache or an output buffer filled step by step is a chain of values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.capture.operations import Memory, Op

from .prints import Print, near, print_of

RANDOM = frozenset(
    ["bernoulli", "normal", "randn", "randn_like", "rand", "rand_like", "uniform", "native_dropout", "exponential", "randint", "randperm", "multinomial"]
)  # fmt: skip
# The same numbers in another shape or place.
MOVES = frozenset(
    ["view", "_unsafe_view", "reshape", "clone", "expand", "transpose", "permute", "t", "unsqueeze", "squeeze", "slice", "select",
     "detach", "alias", "_to_copy", "contiguous", "split", "split_with_sizes", "chunk", "unbind", "as_strided", "empty", "empty_like", "new_empty",
     "lift_fresh", "view_as_real", "view_as_complex", "copy", "unfold"]
)  # fmt: skip

# What the first operand held is gone.
OVERWRITES = frozenset(
    [
        "zero",
        "fill",
        "copy",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
    ]
)


@dataclass(frozen=True)
class Write:
    """A write of operation `op` seen through another view: `before` with the written part laid over it is `after`."""

    op: int
    after: int
    before: int | None
    place: Memory
    written: Memory


@dataclass
class Graph:
    """Operations and their values. `made[v]` is the operation that made value v; values without one come from outside."""

    ops: Sequence[Op]
    values: list[Tensor] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    writes: dict[int, list[Write]] = field(default_factory=dict)  # operation -> what else it changed
    end: int = -1
    _prints: dict[int, Print | None] = field(default_factory=dict)

    def print(self, v: int) -> Print | None:
        if v not in self._prints:
            self._prints[v] = print_of(self.values[v])
        return self._prints[v]

    def cone(self, v: int, stop: Collection[int] = ()) -> list[int]:
        """Return the operations that lead to a value, in order, not going past the values in `stop`."""
        found: set[int] = set()
        todo = [v]
        while todo:
            v = todo.pop()
            i = self.made.get(v)
            if i is None or v in stop or i in found:
                continue
            found.add(i)
            todo += self.sources(i)
        return sorted(found)

    def sources(self, i: int) -> list[int]:
        """Return the values that operation i reads, through memory included."""
        given = self.inputs[i][1:] if self.ops[i].name in OVERWRITES else self.inputs[i]
        return [*given, *(w.before for w in self.writes.get(i, ()) if w.before is not None)]

    def results(self, i: int) -> list[int]:
        return [*self.outputs[i], *(w.after for w in self.writes.get(i, ()))]

    def is_kept(self, v: int) -> bool:
        """Tell whether an earlier call made a value, or what it is a view or copy of."""
        todo, seen = [v], set[int]()
        while todo:
            i = self.made.get(todo.pop())
            if i is None or i in seen:
                continue
            if self.ops[i].earlier:
                return True
            seen.add(i)
            todo += self.sources(i) if self.ops[i].name in MOVES else []
        return False

    def run(
        self, replaced: Mapping[int, Tensor], edges: Mapping[tuple[int, int], Tensor], cone: Sequence[int]
    ) -> dict[int, Tensor] | None:
        """Run what depends on `replaced` values and on `edges` (operation, input) again; None where that cannot be run."""
        fresh: dict[int, Tensor] = dict(replaced)
        touched = {i for i, _ in edges}
        try:
            for i in cone:
                if i in touched or any(v in fresh for v in self.sources(i)):
                    self._again(i, fresh, edges, replaced)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return fresh

    def _again(
        self, i: int, fresh: dict[int, Tensor], edges: Mapping[tuple[int, int], Tensor], fixed: Mapping[int, Tensor]
    ) -> None:
        op = self.ops[i]
        if all(v in fixed for v in self.results(i)):
            return
        if op.again is None or op.name in RANDOM:
            raise ValueError("cannot run again")
        given = [edges.get((i, k), fresh.get(v, op.inputs[k])) for k, v in enumerate(self.inputs[i])]
        made = op.again(given)
        for v, value in zip(self.outputs[i], made, strict=True):
            if v not in fixed:
                fresh[v] = value
        for write in self.writes.get(i, ()):
            if write.after in fixed:
                continue
            if write.before is None:
                raise ValueError("what lay there before is not known")
            fresh[write.after] = laid_over(fresh.get(write.before, self.values[write.before]), made[0], write)


def laid_over(before: Tensor, part: Tensor, write: Write) -> Tensor:
    """Return `before` with a part written into it, both views of one storage."""
    place, written = write.place, write.written
    low = min(place.offset, written.offset)
    buffer = torch.zeros(max(_extent(place), _extent(written)) - low + 1, dtype=before.dtype)
    view = buffer.as_strided(place.shape, place.stride, place.offset - low)
    view.copy_(before)
    buffer.as_strided(written.shape, written.stride, written.offset - low).copy_(part)
    return view.clone()


def _extent(place: Memory) -> int:
    return place.offset + sum((n - 1) * s for n, s in zip(place.shape, place.stride, strict=True))


def build(ops: Sequence[Op], end: Tensor) -> Graph | None:
    """Link operations by their values; None when none of them made `end` (a float64 value, in any shape)."""
    graph = Graph(ops)
    outside: dict[tuple[Memory | None, torch.dtype], list[int]] = {}
    seen: dict[Memory, int] = {}  # where a tensor lies -> its last value
    written: dict[int, list[tuple[int, int]]] = {}  # storage -> (operation, input) that wrote there
    copies: dict[tuple[tuple[int, ...], torch.dtype], list[int]] = {}
    for i, op in enumerate(ops):
        row = []
        for k in range(len(op.inputs)):
            v = _value_of(graph, i, k, outside, seen, written, copies)
            row.append(v)
            place = op.memory[k] if k < len(op.memory) else None
            if place is not None:
                seen[place] = v
        graph.inputs.append(row)
        graph.outputs.append([_new(graph, t, i) for t in op.outputs])
        for v, t in zip(graph.outputs[i], op.outputs, strict=True):
            copies.setdefault((tuple(t.shape), t.dtype), []).append(v)
        for k in op.writes:
            place = op.memory[k] if k < len(op.memory) else None
            if place is not None and op.outputs:
                written.setdefault(place.storage, []).append((i, k))
                seen[place] = graph.outputs[i][0]
    graph.end = _find(graph, end)
    if graph.end < 0:
        graph.end = _filled(graph, end, seen, written)
    return graph if graph.end >= 0 else None


def unmade(ops: Sequence[Op], end: Tensor) -> Graph:
    """Return the graph of a side that goes on with a value from outside as it is: none of its operations made it."""
    graph = Graph(ops)
    graph.inputs, graph.outputs = [[] for _ in ops], [[] for _ in ops]
    graph.end = _new(graph, end, None)
    return graph


def _new(graph: Graph, value: Tensor, maker: int | None) -> int:
    graph.values.append(value)
    if maker is not None:
        graph.made[len(graph.values) - 1] = maker
    return len(graph.values) - 1


def _value_of(
    graph: Graph,
    i: int,
    k: int,
    outside: dict[tuple[Memory | None, torch.dtype], list[int]],
    seen: Mapping[Memory, int],
    written: Mapping[int, list[tuple[int, int]]],
    copies: Mapping[tuple[tuple[int, ...], torch.dtype], list[int]],
) -> int:
    """Return the value that an input is: made by its maker, changed through memory since, a copy of one made before, or from outside."""
    op, value = graph.ops[i], graph.ops[i].inputs[k]
    maker = op.makers[k] if k < len(op.makers) else None
    before: int | None = None
    if maker is not None and 0 <= maker < i:
        for v in graph.outputs[maker]:
            if _equal(graph.values[v], value):
                return v
        before = next((v for v in graph.outputs[maker] if graph.values[v].shape == value.shape), None)
    place = op.memory[k] if k < len(op.memory) else None
    if place is not None:
        if place in seen and _equal(graph.values[seen[place]], value):
            return seen[place]
        for j, m in reversed(written.get(place.storage, ())):
            if maker is not None and j < maker:
                break
            return _through(graph, value, place, j, m, seen.get(place, before))
    if maker is None and value.numel() >= 4 and value.is_floating_point():
        mine = print_of(value)
        for v in reversed(copies.get((tuple(value.shape), value.dtype), ())):
            if near(mine, graph.print(v)) and torch.allclose(
                graph.values[v], value, rtol=1e-6, atol=1e-9, equal_nan=True
            ):
                return v
    for v in outside.get((place, value.dtype), ()):
        if _equal(graph.values[v], value):
            return v
    v = _new(graph, value, None)
    outside.setdefault((place, value.dtype), []).append(v)
    return v


def _through(graph: Graph, value: Tensor, place: Memory, j: int, m: int, before: int | None) -> int:
    """Make the value that a write by operation j left in another view."""
    v = _new(graph, value, j)
    written = graph.ops[j].memory[m]
    assert written is not None
    graph.writes.setdefault(j, []).append(Write(j, v, before, place, written))
    return v


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point() and a.itemsize > 1:
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.itemsize == 1 else torch.equal(a, b)


def _filled(
    graph: Graph, wanted: Tensor, seen: Mapping[Memory, int], written: Mapping[int, list[tuple[int, int]]]
) -> int:
    """Return the buffer whose last write makes these numbers; -1 when there is none. Nothing has read it since."""
    for place, before in list(seen.items()):
        writes = written.get(place.storage)
        if not writes or graph.values[before].numel() != wanted.numel():
            continue
        j, m = writes[-1]
        memory = graph.ops[j].memory[m]
        if memory is None or memory == place:
            continue
        value = laid_over(graph.values[before], graph.ops[j].outputs[0], Write(j, -1, before, place, memory))
        if torch.allclose(value.double().flatten(), wanted.flatten(), rtol=1e-9, atol=1e-12, equal_nan=True):
            return _through(graph, value, place, j, m, before)
    return -1


def _find(graph: Graph, wanted: Tensor) -> int:
    """Return the last value with these numbers in this order, in any shape; else in another order."""
    flat = wanted.flatten()
    for v in range(len(graph.values) - 1, -1, -1):
        value = graph.values[v]
        if v not in graph.made or value.is_complex() or value.numel() != flat.numel():
            continue
        if torch.allclose(value.detach().double().flatten(), flat, rtol=1e-9, atol=1e-12, equal_nan=True):
            return v
    mine = print_of(wanted)
    return next((v for v in range(len(graph.values) - 1, -1, -1) if v in graph.made and near(mine, graph.print(v))), -1)
