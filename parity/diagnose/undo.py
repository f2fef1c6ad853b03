"""Undo an edit in a running port: at its line, in every call, the reference's operations run in place of the port's.

A place is a source line, an operation and how many of that name the line has run since it was entered. Values that the reference's operations need are taken
from the port as it runs (what its own operations at known places made or were given), or, where the port has no counterpart (a bias that it lacks), from the
reference's run, call by call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from parity.capture.operations import Op, Step, op_name, read_scalars, source_line, tensor_names

from .correspondence import Layouts, regrouped
from .expand import FORMULAS
from .graph import Graph
from .search import Edit

Reading = tuple["Place", str, int]  # a place, "in" or "out", which


@dataclass(frozen=True)
class Place:
    """Where an operation runs: line, name, and how many of that name before it since the line was entered."""

    source: str
    name: str
    index: int


class Counter:
    """Count places as operations run one after the other."""

    def __init__(self) -> None:
        self._source = ""
        self._seen: dict[str, int] = {}

    def at(self, source: str, name: str) -> Place:
        if source != self._source:
            self._source, self._seen = source, {}
        index = self._seen.get(name, 0)
        self._seen[name] = index + 1
        return Place(source, name, index)


def places_of(ops: Sequence[Op]) -> list[Place]:
    """Return the places of logged operations."""
    counter = Counter()
    return [counter.at(op.source, op.name) for op in ops]


@dataclass(frozen=True)
class Source:
    """Where a value that the reference's operations need comes from: read from the port, or from the reference call by call, then brought in order."""

    side: str
    reading: Reading
    order: Tensor | None = None
    shape: tuple[int, ...] = ()

    def brought(self, value: Tensor) -> Tensor:
        if self.order is None:
            return value.reshape(self.shape) if self.order is None and value.numel() == _count(self.shape) else value
        return value.flatten()[self.order].reshape(self.shape)


@dataclass(frozen=True)
class Undo:
    """What is put in place of one value: `target` is a result or an operand at a place; `scalars`: other arguments for the operation."""

    place: Place
    target: str  # "out", "in", "arguments", "swap"
    which: tuple[int, ...]
    ops: tuple[
        tuple[Op, tuple[tuple[str, int, int], ...]], ...
    ] = ()  # operation, its inputs: ("made", op, output) or ("given", source, 0)
    sources: tuple[Source, ...] = ()
    result: tuple[str, int, int] = ("given", 0, 0)
    order: Tensor | None = None  # the reference's result in the port's order
    scalars: Mapping[str, Any] = field(default_factory=dict)
    seen: Tensor | None = None  # what the operation was given, or made, where the edit was found


def undo_of(edit: Edit, reference: Graph, port: Graph, layouts: Layouts) -> tuple[Undo, ...] | None:
    """Return how an edit is undone; None when that cannot be said."""
    places = places_of(port.ops)
    arguments = _other_arguments(edit, places)
    if arguments:
        return arguments
    if edit.kind == "exchanged":
        i = edit.at[0]
        outs = port.outputs[i]
        which = tuple(outs.index(v) for v in edit.at[1:] if v in outs)
        return (Undo(places[i], "swap", which),) if len(which) == 2 else None
    if edit.kind == "order" or edit.which < 0 or edit.at[0] < 0:
        return None
    i = edit.at[0]
    if edit.kind == "replaced":
        if edit.at[1] not in port.outputs[i]:
            return None
        target, which = "out", (port.outputs[i].index(edit.at[1]),)
    else:
        target, which = "in", edit.at[1:]
    built = _formula(edit, reference, port, layouts, places)
    if built is None:
        return None
    seen = port.ops[i].inputs[which[0]] if target == "in" else port.values[edit.at[1]]
    ops, sources, result = built
    found = _order(reference.values[edit.which], edit.value)
    if found is False:
        return None
    return (
        Undo(places[i], target, which, ops, sources, result, found if isinstance(found, Tensor) else None, seen=seen),
    )


def _other_arguments(edit: Edit, places: Sequence[Place]) -> tuple[Undo, ...]:
    """Return the undoing of an edit whose operations are the same but for plain arguments."""
    ref, own = list(edit.reference.ops), list(edit.port.ops)
    told = (
        [o for o in ref if o in edit.reference.told],
        [(n, o) for n, o in zip(edit.port.places, own, strict=True) if o in edit.port.told],
    )
    if not told[0] or [o.name for o in told[0]] != [o.name for _, o in told[1]]:
        return ()
    found = []
    for a, (n, b) in zip(told[0], told[1], strict=True):
        other = {
            k: a.scalars[k]
            for k in a.scalars
            if k in b.scalars and a.scalars[k] != b.scalars[k] and k not in ("dtype", "device", "layout")
        }
        if any(isinstance(v, (list, tuple)) for v in other.values()) and len(a.inputs[0].shape) != len(
            b.inputs[0].shape
        ):
            return ()
        if set(a.scalars) != set(b.scalars):
            return ()
        if other:
            found.append(Undo(places[n], "arguments", (), scalars=other, seen=b.outputs[0]))
    return tuple(found)


def _formula(
    edit: Edit, reference: Graph, port: Graph, layouts: Layouts, places: Sequence[Place]
) -> tuple[tuple[Any, ...], tuple[Source, ...], tuple[str, int, int]] | None:
    """Return the reference's operations of an edit with where each of their inputs comes from."""
    inside = set(edit.reference.places)
    ref_places = places_of(reference.ops)
    sources: list[Source] = []
    index: dict[int, int] = {}
    order = {i: n for n, i in enumerate(edit.reference.places)}

    def reach(v: int) -> tuple[str, int, int] | None:
        maker = reference.made.get(v)
        if maker in inside and v in reference.outputs[maker]:
            return ("made", order[maker], reference.outputs[maker].index(v))
        if v not in index:
            source = _source(v, edit, reference, port, layouts, places, ref_places)
            if source is None:
                return None
            index[v] = len(sources)
            sources.append(source)
        return ("given", index[v], 0)

    ops = []
    for i in edit.reference.places:
        given = [reach(v) for v in reference.inputs[i]]
        if any(g is None for g in given) or reference.writes.get(i):
            return None
        ops.append((reference.ops[i], tuple(given)))
    result = reach(edit.which)
    return None if result is None else (tuple(ops), tuple(sources), result)


def _source(
    v: int,
    edit: Edit,
    reference: Graph,
    port: Graph,
    layouts: Layouts,
    places: Sequence[Place],
    ref_places: Sequence[Place],
) -> Source | None:
    """Return where the port has a value of the reference before the edit's operation runs; else where the reference has it."""
    shape = tuple(reference.values[v].shape)
    until = edit.at[0]
    for i in range(until, -1, -1):
        for kind, values in (("in", port.inputs[i]), ("out", port.outputs[i] if i < until else [])):
            for k, b in enumerate(values):
                if port.values[b].numel() == reference.values[v].numel() and v in layouts.counterparts(b):
                    found = _order(port.values[b], reference.values[v])
                    if found is not False:
                        return Source("port", (places[i], kind, k), found if isinstance(found, Tensor) else None, shape)
    if v in reference.made:
        return None
    for i, given in enumerate(reference.inputs):
        if v in given:
            return Source("reference", (ref_places[i], "in", given.index(v)), None, shape)
    return None


def _order(value: Tensor, wanted: Tensor) -> Tensor | bool:
    """Return the places that bring a value into another's order, True for the same order, False when there is none."""
    if value.numel() != wanted.numel():
        return (
            torch.broadcast_to(value, wanted.shape).equal(wanted)
            if value.dim() <= wanted.dim() and _spreads(value, wanted)
            else False
        )
    x, y = value.detach().flatten().double(), wanted.detach().flatten().double()
    close = 1e-5
    if torch.allclose(x, y, rtol=close, atol=1e-8, equal_nan=True):
        return True
    places = torch.arange(value.numel()).reshape(value.shape)
    for moved in regrouped(places, wanted.shape):
        if torch.allclose(x[moved.flatten()], y, rtol=close, atol=1e-8, equal_nan=True):
            return moved.flatten()
    return False


def _spreads(value: Tensor, wanted: Tensor) -> bool:
    return all(a in (1, b) for a, b in zip(reversed(value.shape), reversed(wanted.shape), strict=False))


def _count(shape: Sequence[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


class Interposed(TorchDispatchMode):
    """Run a side with edits undone at their places. `read` collects what the given readings saw, in order of calls."""

    def __init__(
        self,
        undos: Sequence[Undo],
        wanted: Sequence[Reading] = (),
        constants: Mapping[Reading, Sequence[Tensor]] | None = None,
        once: bool = False,
    ) -> None:
        super().__init__()
        self._once = once  # only where the value is the one that the edit was found at
        self.undos: dict[Place, list[Undo]] = {}
        for undo in undos:
            self.undos.setdefault(undo.place, []).append(undo)
        self._readings = {*wanted, *(s.reading for u in undos for s in u.sources if s.side == "port")}
        self._places = {reading[0] for reading in self._readings} | set(self.undos)
        self._lines = {place.source for place in self._places}
        self._constants = constants or {}
        self.read: dict[Reading, list[Tensor]] = {}
        self.times = 0
        self._counter = Counter()
        self._calls: dict[Place, int] = {}
        self._within: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = (self._within, "") if self._within is not None else source_line()
        if found is None:
            return func(*args, **kwargs)
        source, name = str(found[0]), op_name(func)
        if source in self._lines and self._within is None and name in FORMULAS:
            return self._written_out(func, name, args, kwargs, source)
        place = self._counter.at(source, name)
        if place not in self._places:
            return func(*args, **kwargs)
        return self._at(place, func, args, kwargs)

    def feed(self, number: int, recorded: Callable[[], Step]) -> None:
        """Read what a recorded run's operation was given and made."""
        op = recorded().op
        if op.source in self._lines and op.name in FORMULAS:
            self._within = op.source
            try:
                with self:
                    FORMULAS[op.name](replace(op, outputs=()))
            finally:
                self._within = None
            return
        place = self._counter.at(op.source, op.name)
        for kind, values in (("in", op.inputs), ("out", op.outputs)) if place in self._places else ():
            for k, value in enumerate(values):
                self._keep((place, kind, k), value)

    def _written_out(self, func: Any, name: str, args: Any, kwargs: Any, source: str) -> Any:
        result = func(*args, **kwargs)
        leaves, _ = tree_flatten((args, kwargs))
        given = tuple(t for t in leaves if isinstance(t, Tensor))
        op = Op(name, given, (), read_scalars(func, args, kwargs), tensors=tensor_names(func, args, kwargs))
        self._within = source
        try:
            with self:
                value = FORMULAS[name](op)
        finally:
            self._within = None
        whole = result if isinstance(result, Tensor) else result[0]
        if value is None or value.shape != whole.shape:
            return result
        value = value.to(whole.dtype)
        return value if isinstance(result, Tensor) else (value, *result[1:])

    def _at(self, place: Place, func: Any, args: Any, kwargs: Any) -> Any:
        call = self._calls.get(place, 0)
        self._calls[place] = call + 1
        leaves, spec = tree_flatten((args, kwargs))
        slots = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for k, n in enumerate(slots):
            self._keep((place, "in", k), leaves[n])
        undos = self.undos.get(place, ())
        for undo in undos:
            if undo.target == "in" and self._meant(undo, leaves[slots[undo.which[0]]]):
                value = self._value(undo, call)
                for k in undo.which:
                    leaves[slots[k]] = _as(value, leaves[slots[k]], undo.order)
                self.times += 1
        args, kwargs = tree_unflatten(leaves, spec)
        result = func(*args, **kwargs)
        for undo in undos:
            if undo.target == "arguments" and self._meant(undo, result):
                given, named = _with(func, args, kwargs, undo.scalars)
                result = func(*given, **named)
                self.times += 1
            elif undo.target in ("out", "swap") and self._meant(undo, result):
                result = self._replaced(undo, call, result)
                self.times += 1
        outs = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (tuple, list)) else []
        for k, t in enumerate(outs):
            if isinstance(t, Tensor):
                self._keep((place, "out", k), t)
        return result

    def _meant(self, undo: Undo, value: Any) -> bool:
        if not self._once or undo.seen is None:
            return True
        value = value if isinstance(value, Tensor) else value[undo.which[0] if undo.which else 0]
        if value.shape != undo.seen.shape or value.dtype != undo.seen.dtype:
            return False
        return bool(torch.allclose(value, undo.seen, rtol=1e-6, atol=1e-9, equal_nan=True))

    def _keep(self, reading: Reading, value: Tensor) -> None:
        if reading in self._readings:
            self.read.setdefault(reading, []).append(value.detach().clone())

    def _replaced(self, undo: Undo, call: int, result: Any) -> Any:
        parts = [result] if isinstance(result, Tensor) else list(result)
        if undo.target == "swap":
            a, b = undo.which
            parts[a], parts[b] = parts[b], parts[a]
        else:
            k = undo.which[0]
            parts[k] = _as(self._value(undo, call), parts[k], undo.order)
        return parts[0] if isinstance(result, Tensor) else type(result)(parts)

    def _value(self, undo: Undo, call: int) -> Tensor:
        given = []
        for source in undo.sources:
            if source.side == "port":
                value = self.read[source.reading][-1]
            else:
                seen = self._constants[source.reading]
                value = seen[call] if call < len(seen) else seen[-1]
            given.append(source.brought(value))
        made: list[list[Tensor]] = []
        for op, inputs in undo.ops:
            if op.again is None:
                raise RuntimeError(f"{op.name} cannot run again")
            made.append(op.again([given[a] if kind == "given" else made[a][b] for kind, a, b in inputs]))
        kind, a, b = undo.result
        return given[a] if kind == "given" else made[a][b]


def _as(value: Tensor, like: Tensor, order: Tensor | None) -> Tensor:
    """Bring the reference's value into the port's order, shape and dtype."""
    if order is not None:
        value = value.flatten()[order]
    value = value.reshape(like.shape) if value.numel() == like.numel() else value.expand(like.shape)
    return value.to(like.dtype).contiguous()


def _with(func: Any, args: Any, kwargs: Any, scalars: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments with other plain values, by their schema names."""
    given, named = list(args), dict(kwargs)
    for n, argument in enumerate(func._schema.arguments):
        if argument.name in scalars:
            if n < len(given):
                given[n] = scalars[argument.name]
            else:
                named[argument.name] = scalars[argument.name]
    return tuple(given), named
