"""What is known while edits are looked for: regions, edits, and the state of the search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.capture.operations import Op

from .correspondence import Layouts, ends_order
from .graph import MOVES, Graph
from .prints import Prints, print_of


@dataclass(frozen=True)
class Region:
    """Operations of one side, in order; `operands` are the known values that go in and did not come from the region."""

    ops: tuple[Op, ...]
    places: tuple[int, ...] = ()  # in the side's log
    operands: tuple[Tensor, ...] = ()
    kept: bool = False  # whether one of the operands was made by an earlier call
    moving: bool = (
        True  # whether one of the operands was made by another operation; False: all are weights or constants
    )

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


@dataclass(frozen=True)
class Candidate:
    """An edit to try: which of the port's values or operands take which of the reference's values, and the size of both regions."""

    size: int
    kind: str
    values: tuple[tuple[int, int], ...] = ()  # (port value, reference value)
    edges: tuple[tuple[tuple[int, int], int], ...] = ()  # ((operation, operand), reference value)


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
        seen = {*self.ref_values, *_earlier(self.reference)}
        self.ref_prints = Prints((self.reference.print(v) for v in seen), self.close, self.ordered)
        self.port_seen = [self.port.print(v) for v in set(_earlier(self.port)) - set(self.port_values)]

    def late(self) -> bool:
        if time.process_time() > self.until:
            self.exhausted = True
        return self.exhausted

    def known(self) -> tuple[set[int], set[int]]:
        """Return which values of the reference's and the port's cones the other side has, after the edits so far."""
        now = {v: print_of(self.fresh[v]) if v in self.fresh else self.port.print(v) for v in set(self.port_values)}
        have = Prints([*now.values(), *self.port_seen], self.close, self.ordered)
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


def _earlier(graph: Graph) -> list[int]:
    """Return what earlier calls made, whether it leads to the end or not."""
    return [v for i, op in enumerate(graph.ops) if op.earlier for v in graph.results(i)]


def _moved(graph: Graph, cone: Sequence[int], known: set[int]) -> set[int]:
    """Return the known values with what only moves, repeats or cuts them."""
    known = set(known)
    for i in cone:
        if graph.ops[i].name in MOVES and i not in graph.writes and all(v in known for v in graph.inputs[i]):
            known.update(graph.outputs[i])
    return known
