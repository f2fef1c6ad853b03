"""Finding the einops pattern between two shapes that hold the same numbers: transposed heads, merged axes, dropped axes of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parity.trace.names import rearrange

_NAMES = "abcdefgh"
_MOST_AXES = 5
_EQUAL = 1e-3


def find_layout(reference: Tensor, port: Tensor) -> tuple[str, dict[str, int], float] | None:
    """Return (pattern, sizes, error) that brings `port` to the shape of `reference` with the smallest relative error.

    The pattern is empty when the tensors have the same shape and no other arrangement is better. None when no arrangement has the shape.
    """
    if reference.numel() != port.numel() or (reference.shape != port.shape and not (reference.dim() and port.dim())):
        return None  # a pattern names axes: there is none to or from a single number
    best: tuple[str, dict[str, int], float] | None = None
    if reference.shape == port.shape:
        best = ("", {}, _error(reference, port))
        if best[2] <= _EQUAL:
            return best
    for pattern, sizes in patterns(tuple(reference.shape), tuple(port.shape)):
        error = _error(reference, rearrange(port, pattern, sizes))
        if best is None or error < best[2] - 1e-9:
            best = (pattern, sizes, error)
            if error <= _EQUAL:
                break
    return best


def patterns(reference: Sequence[int], port: Sequence[int]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield every einops pattern from the shape `port` to the shape `reference` whose parts are whole axes of one of them."""
    atoms_ref = [n for n in reference if n != 1]
    atoms_port = [n for n in port if n != 1]
    seen = set()
    for atoms, fixed, other, flip in ((atoms_ref, reference, port, False), (atoms_port, port, reference, True)):
        if len(atoms) > _MOST_AXES:
            continue
        names = _NAMES[: len(atoms)]
        for order in itertools.permutations(range(len(atoms))):
            grouped = _group([atoms[i] for i in order], other)
            if grouped is None:
                continue
            rest = iter(order)
            side = _write([[names[next(rest)] for _ in group] for group in grouped], other)
            plain = _write([[n] for n in names], fixed)
            pattern = f"{plain} -> {side}" if flip else f"{side} -> {plain}"
            sizes = {} if flip else {n: atoms[i] for i, n in enumerate(names)}
            if pattern not in seen:
                seen.add(pattern)
                yield pattern, {n: s for n, s in sizes.items() if "(" in side}


def _group(atoms: Sequence[int], shape: Sequence[int]) -> list[list[int]] | None:
    """Cut `atoms` into consecutive groups whose products are the axes of `shape` (axes of one get none)."""
    groups: list[list[int]] = []
    i = 0
    for size in shape:
        if size == 1:
            continue
        group: list[int] = []
        while math.prod(group) < size and i < len(atoms):
            group.append(atoms[i])
            i += 1
        if math.prod(group) != size:
            return None
        groups.append(group)
    return groups if i == len(atoms) else None


def _write(groups: Sequence[Sequence[str]], shape: Sequence[int]) -> str:
    rest = iter(groups)
    words = []
    for size in shape:
        if size == 1:
            words.append("1")
            continue
        group = next(rest)
        words.append(group[0] if len(group) == 1 else f"({' '.join(group)})")
    return " ".join(words) if words else "..."


def _error(r: Tensor, p: Tensor) -> float:
    if not (r.is_floating_point() and p.is_floating_point()):
        return float((r != p).double().mean()) if r.numel() else 0.0
    r, p = torch.nan_to_num(r.double()), torch.nan_to_num(p.double())
    norm = float(torch.linalg.vector_norm(r))
    return float(torch.linalg.vector_norm(r - p)) / norm if norm > 0 else float(torch.linalg.vector_norm(p) > 0)
