"""The values of single records for the page: histograms, the error along each axis, the worst elements, a slice of both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parity.report.media import ValueView
from parity.result import Divergence, Row, format_key
from parity.trace import Trace

MOST_VIEWS = 48
MOST_ELEMENTS = 1 << 23  # of a tensor: a larger one is not looked at
BINS, CELLS, WORST, SIDE = 48, 96, 8, 40
Values = NDArray[np.float64]


def value_views(
    rows: Sequence[Row], divergences: Sequence[Divergence], reference: Trace, port: Trace
) -> tuple[ValueView, ...]:
    """Look at the first record of each diverging site, then at the others that are nearest to their floors; at most 48."""
    found = []
    for row in _order(rows, divergences):
        left, right = values_at(row, reference, port)
        if left is None or right is None or not 0 < left.numel() <= MOST_ELEMENTS:
            continue
        found.append(value_view(row.key, left, right))
        if len(found) == MOST_VIEWS:
            break
    return tuple(found)


def values_at(row: Row, reference: Trace, port: Trace) -> tuple[Tensor | None, Tensor | None]:
    """Return both sides' values of a row, under whichever name the port has them; None where they were not kept or the shapes differ."""
    left = reference.tensor(row.key)
    right = port.tensor(format_key(row.port or row.site, row.coords))
    right = port.tensor(row.key) if right is None else right
    return (left, right) if left is not None and right is not None and left.shape == right.shape else (None, None)


def _order(rows: Sequence[Row], divergences: Sequence[Divergence]) -> list[Row]:
    """Rows in the order in which they matter."""
    keys = {found.key for found in divergences}
    seen: set[str] = set()
    first, later, others = [], [], []
    for row in rows:
        if row.key not in keys:
            others.append(row)
        elif row.site in seen:
            later.append(row)
        else:
            seen.add(row.site)
            first.append(row)
    others.sort(key=lambda row: -(row.error / row.floor if row.floor > 0 and row.error > 0 else 0.0))
    return [*first[: MOST_VIEWS * 3 // 4], *others[: MOST_VIEWS // 4], *first[MOST_VIEWS * 3 // 4 :], *later, *others]


def value_view(key: str, reference: Tensor, port: Tensor) -> ValueView:
    """Look at two tensors of one shape, at least one element each."""
    left, right = _array(reference), _array(port)
    with np.errstate(invalid="ignore"):
        apart = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, right - left)
    size = np.where(np.isnan(apart), np.inf, np.abs(apart))
    worst = np.argsort(size, axis=None)[::-1][:WORST]
    places = [tuple(int(i) for i in np.unravel_index(flat, size.shape)) for flat in worst]
    low, high = _range(left, right)
    name, origin, cut = _slice(left.shape, places[0])
    return ValueView(
        key,
        left.shape,
        (low, high),
        _histogram(left, low, high),
        _histogram(right, low, high),
        (int((~np.isfinite(left)).sum()), int((~np.isfinite(right)).sum())),
        _along(size, left),
        tuple((place, float(left[place]), float(right[place])) for place in places if size[place] > 0),
        name,
        origin,
        np.atleast_2d(left[cut]),
        np.atleast_2d(right[cut]),
        np.atleast_2d(size[cut]),
    )


def _array(value: Tensor) -> Values:
    import torch

    value = torch.view_as_real(value) if value.is_complex() else value
    array = value.detach().to(torch.float64).cpu().numpy()
    return array if array.ndim else array.reshape(1)


def _range(left: Values, right: Values) -> tuple[float, float]:
    known = [side[np.isfinite(side)] for side in (left, right)]
    low = min((float(k.min()) for k in known if k.size), default=0.0)
    high = max((float(k.max()) for k in known if k.size), default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _histogram(side: Values, low: float, high: float) -> tuple[int, ...]:
    counts, _ = np.histogram(side[np.isfinite(side)], bins=BINS, range=(low, high))
    return tuple(int(count) for count in counts)


def _along(size: Values, reference: Values) -> tuple[tuple[int, int, tuple[float, ...]], ...]:
    """For each axis longer than one: the L2 error at each index over what it would be if the reference were spread evenly."""
    whole = float(np.sqrt((reference[np.isfinite(reference)] ** 2).sum())) or 1.0
    found = []
    for axis, length in enumerate(size.shape):
        if length < 2:
            continue
        others = tuple(i for i in range(size.ndim) if i != axis)
        errors = np.sqrt((size**2).sum(axis=others) * length) / whole
        step = -(-length // CELLS)
        bins = [float(errors[i : i + step].max()) for i in range(0, length, step)]
        found.append((axis, step, tuple(bins)))
    return tuple(found)


def _slice(shape: tuple[int, ...], place: tuple[int, ...]) -> tuple[str, tuple[int, int], tuple[int | slice, ...]]:
    """The two longest axes through one element, at most 40 values each; its name, its first row and column, and the cut."""
    shown = sorted(sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2])
    begin = {axis: min(max(0, place[axis] - SIDE // 2), max(0, shape[axis] - SIDE)) for axis in shown}
    cut = tuple(slice(begin[axis], begin[axis] + SIDE) if axis in begin else place[axis] for axis in range(len(shape)))
    names = [":" if axis in begin else str(place[axis]) for axis in range(len(shape))]
    starts = [begin[axis] for axis in shown]
    origin = (starts[0], starts[1]) if len(starts) == 2 else (0, starts[0])
    return f"[{', '.join(names)}]", origin, cut
