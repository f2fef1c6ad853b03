"""Prints of values: what tells two tensors apart up to their layout, from a handful of sums."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Relative: what two float64 runs of one formula may differ by, and what they may where a step in between is float32.
CLOSE, COARSE = 1e-9, 1e-6
Print = tuple[float, ...]
_HUGE = (1e30, 1e31)  # stand for nan and infinity, which have no sums
LOW, TIMES = -1e5, 1e6  # so low, and so many times the median: no score, a mask was added
HIDDEN = -1e20  # a score below is that of a hidden key, whatever number hides it


def print_of(value: Tensor) -> Print | None:
    """Return (count, largest, order-free sums of the values in units of it, a sum that depends on the order); None for nothing."""
    if value.numel() == 0 or value.is_meta:
        return None
    wide = (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).detach().double().flatten()
    hidden = _hidden(wide)
    wide = torch.nan_to_num(wide, nan=_HUGE[0], posinf=_HUGE[1], neginf=0.0).masked_fill(hidden, 0.0)
    scale = float(wide.abs().max()) or 1.0
    unit = (wide / scale).masked_fill(hidden, -3.0)
    n = math.sqrt(unit.numel())
    sums = (float(unit.sum()) / n, float(unit.square().sum()) / n, float(torch.sin(3.7 * unit).sum()) / n)
    place = torch.arange(unit.numel(), dtype=torch.float64)
    return (float(value.numel()), scale, *sums, float((unit * torch.sin(1.0 + 0.7 * place)).sum()) / n)


def _hidden(wide: Tensor) -> Tensor:
    """Return which values are those of hidden keys: what so large a number is added to is lost in the sums, and so is what differs."""
    if not float(wide.min()) < LOW:
        return wide < HIDDEN
    return (wide < HIDDEN) | (wide < min(LOW, -TIMES * float(wide.abs().median())))


def near(a: Print | None, b: Print | None, close: float = COARSE, ordered: bool = False) -> bool:
    """Tell whether two prints are of the same numbers, in any order or in the same."""
    if a is None or b is None or a[0] != b[0] or abs(a[1] - b[1]) > close * max(a[1], b[1]):
        return False
    last = 6 if ordered else 5
    return all(abs(x - y) <= close * max(1.0, abs(x)) for x, y in zip(a[2:last], b[2:last], strict=True))


class Prints:
    """A set of prints, searched by count."""

    def __init__(self, prints: Iterable[Print | None], close: float, ordered: bool = False) -> None:
        self.close, self.ordered = close, ordered
        self._by_count: dict[float, list[Print]] = {}
        for p in prints:
            if p is not None:
                self._by_count.setdefault(p[0], []).append(p)

    def has(self, value: Print | None) -> bool:
        """Tell whether the same numbers are in the set; nothing always is."""
        return value is None or any(
            near(value, other, self.close, self.ordered) for other in self._by_count.get(value[0], ())
        )
