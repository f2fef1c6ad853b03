"""Say in words where a mask differs: which frame, which sub-frame, what it is and what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from torch import Tensor

_SHOWN = 4  # groups in the text; the rest is counted


def describe_mask(reference: Tensor, port: Tensor, axes: Mapping[str, int]) -> str:
    """Return where two masks of one shape differ, "" without a difference.

    axes: what to call axes, in the order in which they are spoken: {"latent frame": 1, "sub-frame": 0}. Axes without a name (rows, columns) are
    summed up: an entry is one value, or differs at some of its positions.

    >>> import torch
    >>> describe_mask(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]), {"frame": 1})
    'frame 1 is 0, should be 1'
    """
    order = list(axes.values())
    rest = [axis for axis in range(reference.dim()) if axis not in order]
    r, p = (
        x.permute(*order, *rest).flatten(len(order)) if rest else x.permute(*order)[..., None]
        for x in (reference, port)
    )
    entries = {}
    for index in product(*(range(n) for n in r.shape[:-1])):
        wrong = r[index] != p[index]
        if bool(wrong.any()):
            entries[index] = _entry(r[index], p[index], wrong)
    names = list(axes)
    runs = _runs(entries)
    shown = [
        _place(names, outer, first, last) + _verb(first, last) + text for outer, first, last, text in runs[:_SHOWN]
    ]
    more = sum(last - first + 1 for _, first, last, _ in runs[_SHOWN:])
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _entry(r: Tensor, p: Tensor, wrong: Tensor) -> str:
    """ "is 0, should be 1" of one entry, or at how many of its positions it differs; the verb is left to the caller."""
    if bool(wrong.all()) and len(r.unique()) == 1 and len(p.unique()) == 1:
        return f"{float(p[0]):g}, should be {float(r[0]):g}"
    first = int(wrong.nonzero()[0])
    return f"wrong at {int(wrong.sum())} of {r.numel()} positions, first {float(p[first]):g} that should be {float(r[first]):g}"


def _runs(entries: Mapping[tuple[int, ...], str]) -> list[tuple[tuple[int, ...], int, int, str]]:
    """Join neighbours along the innermost named axis that say the same: (outer index, first, last, text)."""
    runs: list[tuple[tuple[int, ...], int, int, str]] = []
    for (*outer, inner), text in entries.items():
        if runs and runs[-1][0] == tuple(outer) and runs[-1][2] == inner - 1 and runs[-1][3] == text:
            runs[-1] = (*runs[-1][:2], inner, text)
        else:
            runs.append((tuple(outer), inner, inner, text))
    return runs


def _place(names: Sequence[str], outer: Sequence[int], first: int, last: int) -> str:
    inner = f"{names[-1]} {first}" if first == last else f"{names[-1]}s {first} to {last}"
    return ", ".join([*(f"{name} {i}" for name, i in zip(names, outer, strict=False)), inner])


def _verb(first: int, last: int) -> str:
    return " is " if first == last else " are "
