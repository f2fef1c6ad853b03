"""Caches slot by slot: which entry of the reference each entry of the port is (BUGS.md K1, K3, K6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_SLOTS = 4096


def slot_axes(shape: tuple[int, ...]) -> list[int]:
    """Return the axes that may count slots, likeliest first: of [b, h, s, d] the third, of [b, s, h, d] the second, of [s, ..] the first."""
    if len(shape) == 1:
        return [0]
    order = {2: [0], 3: [1, 0], 4: [2, 1, 0], 5: [3, 2, 1], 6: [4, 3, 2]}.get(len(shape), [len(shape) - 2])
    return [axis for axis in order if shape[axis] > 1]


def rows_of(x: Tensor, axis: int) -> Tensor:
    """Bring `x` to [slots, features]."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


@dataclass(frozen=True)
class SlotMap:
    """For each slot of the port: the slot of the reference with the same content, or −1 (none), and which slots are all zero."""

    source: Tensor
    zero: Tensor
    count: int

    @property
    def same(self) -> Tensor:
        return self.source == torch.arange(len(self.source))

    @property
    def is_permutation(self) -> bool:
        return len(self.source) == self.count and sorted(self.source.tolist()) == list(range(self.count))


def slot_map(ours: Tensor, theirs: Tensor, tolerance: float) -> SlotMap | None:
    """Match rows [s, f] of the port to rows of the reference; a slot's own place first. None when rows cannot be told apart."""
    n, m = len(ours), len(theirs)
    if max(n, m) > MOST_SLOTS or ours.shape[1] != theirs.shape[1] or min(n, m) == 0 or ours.shape[1] == 0:
        return None
    every = max(1, ours.shape[1] // 512)
    a, b = ours[:, ::every], theirs[:, ::every]
    norms = torch.linalg.vector_norm(a, dim=1).clamp_min(1e-300)
    distance = torch.cdist(b, a) / norms
    own = torch.diag(torch.cdist(a, a) < tolerance * norms) if n < 2 else None
    if own is None:
        apart = torch.cdist(a, a) / norms + torch.eye(n, dtype=a.dtype) * 9
        written = norms > 1e-12
        if bool((apart[written][:, written] <= tolerance).any()):
            return None
    source = torch.full((m,), -1)
    for slot in range(m):
        if slot < n and bool(distance[slot, slot] <= tolerance):
            source[slot] = slot
            continue
        best = int(distance[slot].argmin())
        if bool(distance[slot, best] <= tolerance):
            source[slot] = best
    zero = (theirs == 0).all(1)
    source[zero & (torch.linalg.vector_norm(ours, dim=1)[:m] > 0 if n >= m else zero)] = -1
    return SlotMap(source, zero, n)
