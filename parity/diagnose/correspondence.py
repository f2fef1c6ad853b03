"""Which values of the two sides hold the same numbers, and how one side's layout becomes the other's."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from .graph import Graph
from .prints import Print, near

MOST_LAYOUTS = 6
MOST_AXES = 5


class Layouts:
    """Layouts seen between values that correspond; they carry over to values of the same count."""

    def __init__(self, reference: Graph, port: Graph, close: float, ordered: bool = False) -> None:
        self.reference, self.port, self.close, self.ordered = reference, port, close, ordered
        self._by_count: dict[float, list[int]] = {}
        for v in range(len(reference.values)):
            p = reference.print(v)
            if p is not None:
                self._by_count.setdefault(p[0], []).append(v)
        self._orders: dict[int, list[tuple[Tensor, Tensor] | None]] = {}
        self._found: dict[int, list[int]] = {}

    def counterparts(self, v: int) -> list[int]:
        """Return the reference's values with the numbers of a value of the port, those in the same order first."""
        if v not in self._found:
            p: Print | None = self.port.print(v)
            mine = self.port.values[v]
            found = (
                [a for a in self._by_count.get(p[0], ()) if near(self.reference.print(a), p, self.close, self.ordered)]
                if p
                else []
            )
            self._found[v] = sorted(found, key=lambda a: not _same_order(self.reference.values[a], mine))
        return self._found[v]

    def in_place_of(self, a: int, like: Tensor) -> list[Tensor]:
        """Return a value of the reference in every layout in which it may stand for `like`."""
        value = self.reference.values[a]
        if value.is_complex() != like.is_complex():
            return []
        value = value.to(like.dtype) if value.dtype != like.dtype else value
        if self.ordered:
            return [value.reshape(like.shape)] if value.numel() == like.numel() else _spread(value, like)
        if value.numel() != like.numel():
            return _spread(value, like)
        found = []
        for order in self._orders_of(like.numel()):
            if order is None:
                found.append(value.reshape(like.shape))
            else:
                moved = torch.empty_like(value.flatten())
                moved[order[1]] = value.flatten()[order[0]]
                found.append(moved.reshape(like.shape))
        if value.shape == like.shape and None not in self._orders_of(like.numel()):
            found.insert(0, value)
        if value.shape != like.shape or None not in self._orders_of(like.numel()):
            found += regrouped(value, like.shape)
            ranked = _by_rank(value, like)
            found += [ranked] if ranked is not None else []
        return (found or [value.reshape(like.shape)])[:MOST_LAYOUTS]

    def _orders_of(self, count: int) -> list[tuple[Tensor, Tensor] | None]:
        """Return how the port orders what the reference has, for values of one count: None is the same order."""
        if count not in self._orders:
            found: list[tuple[Tensor, Tensor] | None] = []
            seen: set[bytes] = set()
            for v, value in enumerate(self.port.values):
                if value.numel() != count or not value.is_floating_point() or len(found) >= 3 or count < 8:
                    continue
                for a in self.counterparts(v)[:1]:
                    order = _order(self.reference.values[a], value)
                    if order is False or order is True:
                        continue
                    key = b"" if order is None else order[1].numpy().tobytes()[:4096]
                    if key not in seen:
                        seen.add(key)
                        found.append(order)
            found.sort(key=lambda order: order is not None)
            self._orders[count] = found
        return self._orders[count]


def _spread(value: Tensor, like: Tensor) -> list[Tensor]:
    try:
        return [value.expand(like.shape).contiguous()] if value.numel() < like.numel() else []
    except RuntimeError:
        return []


def regrouped(value: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return the value with its axes in every other order in which they can be merged, or split, into `shape`."""
    mine, theirs = [n for n in value.shape if n != 1], [n for n in shape if n != 1]
    if max(len(mine), len(theirs)) > MOST_AXES or min(len(mine), len(theirs)) < 2:
        return []
    found: list[Tensor] = []
    split = len(theirs) > len(mine)  # then the port's axes are put in the reference's order
    many, few = (theirs, mine) if split else (mine, theirs)
    for axes in sorted(permutations(range(len(many))), key=_inversions):
        if not _merges([many[a] for a in axes], few) or (axes == tuple(range(len(many))) and value.shape == shape):
            continue
        if split:
            back = [axes.index(a) for a in range(len(axes))]
            moved = value.reshape([many[a] for a in axes]).permute(back)
        else:
            moved = value.reshape(mine).permute(axes)
        found.append(moved.reshape(shape))
        if len(found) >= MOST_LAYOUTS:
            break
    return found


def _inversions(axes: tuple[int, ...]) -> int:
    return sum(a > b for i, a in enumerate(axes) for b in axes[i + 1 :])


def _merges(many: list[int], few: list[int]) -> bool:
    """Tell whether neighbours of `many` multiply to `few`."""
    at, product = 0, 1
    for n in many:
        product *= n
        if at < len(few) and product == few[at]:
            at, product = at + 1, 1
    return at == len(few) and product == 1


def _by_rank(value: Tensor, like: Tensor) -> Tensor | None:
    """Return the value with its numbers in the order of `like`'s: right where one is a rising function of the other."""
    if not value.is_floating_point() or value.numel() < 8:
        return None
    x, y = value.flatten().sort(), like.flatten().sort()
    moved = torch.empty_like(x.values)
    moved[y.indices] = x.values
    return moved.reshape(like.shape)


def _same_order(a: Tensor, b: Tensor) -> bool:
    x, y = a.flatten(), b.flatten()
    if x.is_complex() or y.is_complex():
        return False
    return bool(torch.allclose(x.double(), y.double(), rtol=1e-5, atol=1e-8, equal_nan=True))


def _order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | bool | None:
    """Return index pairs that bring a's numbers into b's order, None for the same order, False when repeated numbers hide it."""
    if _same_order(a, b):
        return None
    x, y = a.double().flatten().sort(), b.double().flatten().sort()
    if bool((x.values.diff() <= 1e-9 * x.values.abs().max()).any()):
        return False
    return x.indices, y.indices


def ends_order(made: Tensor, recorded: Tensor) -> Tensor | None:
    """Return at which places a value's numbers lie after it was made, where it was then brought into another layout; None where it was not."""
    if made.is_complex() or made.numel() != recorded.numel() or _same_order(made, recorded):
        return None
    places = torch.arange(made.numel()).reshape(made.shape)
    for moved in regrouped(places, recorded.shape):
        if _same_order(made.flatten()[moved.flatten()], recorded):
            return moved.flatten()
    order = _order(made, recorded)
    if not isinstance(order, tuple):
        return None
    index = torch.empty_like(order[0])
    index[order[1]] = order[0]
    return index
