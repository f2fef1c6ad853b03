"""Calls in pieces: what one side computes at once and the other in chunks of rows, of tokens, or token by token on a cache.

A site that the reference calls once and the port several times is compared as a whole when the pieces, joined along one axis, have the reference's shape. A piece
may also be shorter along a second axis, as a causal mask is whose keys have not come yet, when the reference holds one value there (hidden, zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.trace import Record, Trace

Key = tuple[str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class Piece:
    """Where a port record lies in the reference's values: `keys` joined along `axis`, from `start`, `shape` entries of each axis."""

    keys: tuple[str, ...]
    axis: int
    start: int
    shape: tuple[int, ...]

    def of(self, reference: Trace) -> Tensor | None:
        """Cut the piece out of the reference's values; None when one of them has no tensor."""
        values = [reference.tensor(key) for key in self.keys]
        if any(value is None for value in values):
            return None
        whole = values[0] if len(values) == 1 else torch.cat(values, self.axis)  # type: ignore[arg-type]
        assert whole is not None
        whole = whole.narrow(self.axis, self.start, self.shape[self.axis])
        return whole[tuple(slice(0, n) for n in self.shape)]


@dataclass(frozen=True)
class _Run:
    """Parts from `first` to `last` (exclusive) that make one whole, joined along `axis`."""

    first: int
    last: int
    axis: int


def fit_calls(reference: Trace, port: Trace) -> tuple[Trace, dict[str, Piece]]:
    """Return the port's trace with its calls joined or cut as the reference makes them, and where each of its own records lies.

    Sites whose calls already agree, or cannot be made to, stay as they are.
    """
    ours, theirs = _by_site(reference), _by_site(port)
    joined: dict[
        str, list[tuple[Record, Tensor]]
    ] = {}  # the first port record of a site -> what stands for all of them
    pieces: dict[str, Piece] = {}
    dropped: set[str] = set()
    for site in theirs.keys() & ours.keys():
        refs, ports = ours[site], theirs[site]
        if [r.shape for r in refs] == [p.shape for p in ports]:
            continue
        made = _join(refs, ports, reference, port, pieces) or _cut(refs, ports, port, pieces)
        if made is not None:
            joined[ports[0].key] = made
            dropped.update(p.key for p in ports)
    if not joined:
        return port, {}
    dropped |= _repeats(ours, theirs, port, dropped) | _part_masks(ours, theirs, port, dropped)
    return _rebuilt(port, joined, dropped), pieces


def _join(
    refs: Sequence[Record], ports: Sequence[Record], reference: Trace, port: Trace, pieces: dict[str, Piece]
) -> list[tuple[Record, Tensor]] | None:
    """Join the port's pieces to the reference's calls."""
    orders = [list(ports)]
    if len(refs) > 1 and len(ports) % len(refs) == 0:  # calls of one module call, made anew for every piece of it
        orders.append([p for i in range(len(refs)) for p in ports[i :: len(refs)]])
    tried = [_joined_in_order(refs, order, reference, port) for order in orders]
    fitting = [t for t in tried if t is not None]
    if not fitting:
        return None
    made, found = min(fitting, key=lambda t: _distance(t[0], reference)) if len(fitting) > 1 else fitting[0]
    pieces.update({key: piece for key, piece in found.items() if len(ports) > len(refs)})
    return made


def _distance(made: Sequence[tuple[Record, Tensor]], reference: Trace) -> float:
    """Return how far joined values are from the reference's, over all calls."""
    total = 0.0
    for record, value in made:
        r = reference.tensor(record.key)
        if r is not None:
            total += float(torch.linalg.vector_norm((value.to(torch.complex128) - r.to(torch.complex128)).nan_to_num()))
    return total


def _joined_in_order(
    refs: Sequence[Record], ports: Sequence[Record], reference: Trace, port: Trace
) -> tuple[list[tuple[Record, Tensor]], dict[str, Piece]] | None:
    runs = _runs(refs, ports)
    if runs is None:
        return None
    made: list[tuple[Record, Tensor]] = []
    found: dict[str, Piece] = {}
    for ref, run in zip(refs, runs, strict=True):
        parts, start = ports[run.first : run.last], 0
        values = []
        for part in parts:
            piece = Piece((ref.key,), run.axis, start, part.shape)
            value = _padded(port.tensor(part.key), piece, reference)
            if value is None:
                return None
            values.append(value)
            found[part.key] = piece
            start += part.shape[run.axis]
        whole = torch.cat(values, run.axis)
        made.append((replace(parts[0], coords=ref.coords, shape=tuple(whole.shape)), whole))
    return made, found


def _cut(
    refs: Sequence[Record], ports: Sequence[Record], port: Trace, pieces: dict[str, Piece]
) -> list[tuple[Record, Tensor]] | None:
    """Cut the port's whole values into the pieces that the reference's calls have."""
    runs = _runs(ports, refs)
    if runs is None or any(refs[i].shape[:1] == () for i in range(len(refs))):
        return None
    made = []
    for whole, run in zip(ports, runs, strict=True):
        value, parts, start = port.tensor(whole.key), refs[run.first : run.last], 0
        if value is None or any(
            part.shape[:axis] + part.shape[axis + 1 :] != whole.shape[:axis] + whole.shape[axis + 1 :]
            for part in parts
            for axis in [run.axis]
        ):
            return None
        pieces[whole.key] = Piece(tuple(p.key for p in parts), run.axis, 0, whole.shape)
        for part in parts:
            cut = value.narrow(run.axis, start, part.shape[run.axis])
            made.append((replace(whole, coords=part.coords, shape=part.shape), cut))
            start += part.shape[run.axis]
    return made


def _runs(wholes: Sequence[Record], parts: Sequence[Record]) -> list[_Run] | None:
    """Return which consecutive parts make up each whole; None when they do not come out even."""
    runs: list[_Run] = []
    first = 0
    for whole in wholes:
        run = next((r for axis in range(len(whole.shape)) if (r := _run(whole, parts, first, axis)) is not None), None)
        if run is None:
            return None
        runs.append(run)
        first = run.last
    return runs if first == len(parts) else None


def _run(whole: Record, parts: Sequence[Record], first: int, axis: int) -> _Run | None:
    """Take parts until they are as long as the whole along `axis`; along one other axis they may grow as the parts add up."""
    total, last = 0, first
    while last < len(parts) and total < whole.shape[axis]:
        part = parts[last]
        if len(part.shape) != len(whole.shape) or part.dtype != whole.dtype or part.shape[axis] == 0:
            return None
        total += part.shape[axis]
        other = [a for a, n in enumerate(whole.shape) if a != axis and part.shape[a] != n]
        if len(other) > 1 or any(part.shape[a] != total for a in other):
            return None
        last += 1
    alone = last - first == 1 and parts[first].shape != whole.shape
    return _Run(first, last, axis) if total == whole.shape[axis] and not alone else None


def _padded(value: Tensor | None, piece: Piece, reference: Trace) -> Tensor | None:
    """Fill a piece up to the reference's width with the one value that the reference has there."""
    whole = reference.tensor(piece.keys[0])
    if value is None or whole is None:
        return None
    rows = whole.narrow(piece.axis, piece.start, piece.shape[piece.axis])
    if rows.shape == value.shape:
        return value
    inside = tuple(slice(0, n) for n in piece.shape)
    outside = torch.ones(rows.shape, dtype=torch.bool)
    outside[inside] = False
    rest = rows[outside.to(rows.device)]
    if not bool((rest == rest.flatten()[0]).all()):
        return None
    filled = rest.flatten()[0].to(value.dtype).expand(rows.shape).clone()
    filled[inside] = value
    return filled


def _repeats(
    ours: Mapping[Key, Sequence[Record]], theirs: Mapping[Key, Sequence[Record]], port: Trace, joined: set[str]
) -> set[str]:
    """Return further calls of a run in pieces that only give the first one's values again, as tables do that every piece reads."""
    found: set[str] = set()
    for site, ports in theirs.items():
        refs = ours.get(site, ())
        if not refs or len(ports) <= len(refs) or ports[0].key in joined:
            continue
        first = port.tensor(ports[0].key)
        rest = [port.tensor(p.key) for p in ports[len(refs) :]]
        if first is not None and all(v is not None and torch.equal(v, first) for v in rest):
            found.update(p.key for p in ports[len(refs) :])
    return found


def _part_masks(
    ours: Mapping[Key, Sequence[Record]], theirs: Mapping[Key, Sequence[Record]], port: Trace, joined: set[str]
) -> set[str]:
    """Return masks of another shape in a run in pieces: a piece that needs none has none, so they cannot be put together."""
    found: set[str] = set()
    for site, ports in theirs.items():
        refs = ours.get(site, ())
        if not refs or ports[0].key in joined or [r.shape for r in refs] == [p.shape for p in ports]:
            continue
        if all((value := port.tensor(p.key)) is not None and _is_mask(value) for p in ports):
            found.update(p.key for p in ports)
    return found


def _is_mask(value: Tensor) -> bool:
    if value.dtype == torch.bool:
        return True
    return value.is_floating_point() and bool(((value == 0) | (value < -1e4)).all())


def _by_site(trace: Trace) -> dict[Key, list[Record]]:
    """Return the records of each site and coordinates, its calls in order; a backward pass reaches the last call first."""
    found: dict[Key, list[Record]] = {}
    for record in sorted(trace, key=lambda r: r.coords.get("call", 0)):
        coords = tuple((axis, i) for axis, i in record.coords.items() if axis != "call")
        found.setdefault((record.site, coords), []).append(record)
    return found


def _rebuilt(port: Trace, joined: Mapping[str, list[tuple[Record, Tensor]]], dropped: set[str]) -> Trace:
    made = Trace(manifest=port.manifest)
    for record in port:
        if record.key in joined:
            for one, value in joined[record.key]:
                plain = replace(one, order=len(made), stats=None, digest="", sketch=None)
                made.add(plain, value)
        elif record.key not in dropped:
            made.add(replace(record, order=len(made)), port.tensor(record.key))
    return made
