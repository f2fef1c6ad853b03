"""Find which row of the reference each row of the port is, by value, in the presence of rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .evidence import Evidence
from .fits import cached, noise_level, sample_index

FINGERPRINT = 10


@dataclass(frozen=True)
class Match:
    """`index[i]` is the row of the pool that row i equals; `found` says where there is one."""

    index: np.ndarray
    found: np.ndarray

    @property
    def complete(self) -> bool:
        return bool(self.found.all())


def same_values(ev: Evidence) -> bool:
    """Whether p and r have the same order-free statistics (sum, Σ|x|, Σx², Σx³, extremes), as any permutation has."""

    def make() -> bool:
        r, p = ev.r.reshape(-1), ev.p.reshape(-1)
        if r.numel() != p.numel() or r.numel() == 0:
            return False
        scale = float(r.abs().max())
        if scale == 0 or not np.isfinite(scale):
            return False
        slack = 1e-6 + 4 * noise_level(ev)
        r, p = r / scale, p / scale
        if abs(float(r.max() - p.max())) > slack or abs(float(r.min() - p.min())) > slack:
            return False
        size = float((r * r).sum())
        pairs = [
            (r.sum(), p.sum()),
            (r.abs().sum(), p.abs().sum()),
            ((r * r).sum(), (p * p).sum()),
            ((r**3).sum(), (p**3).sum()),
        ]
        root = float(np.sqrt(size * r.numel()))
        return all(abs(float(a - b)) <= slack * max(root, 1e-300) for a, b in pairs)

    return cached(ev, "same_values", make)


def fingerprints(rows: Tensor) -> np.ndarray:
    """Project rows [n, m] onto at most FINGERPRINT fixed random directions; keeps m when it is small already."""
    m = rows.shape[1]
    if m <= FINGERPRINT:
        return np.asarray(rows.numpy())
    generator = torch.Generator().manual_seed(20)
    directions = torch.randn(m, FINGERPRINT, generator=generator, dtype=torch.float64) / np.sqrt(m)
    return np.asarray((rows @ directions).numpy())


def match_rows(p: Tensor, pool: Tensor, tolerance: float, prefer_same: bool = True) -> Match | None:
    """Match each row of `p` [n, m] to a row of `pool` [k, m] within relative `tolerance` of the typical row norm.

    Returns None at once when the first sampled rows find no partner. Equal rows keep their own position
    (`prefer_same`).
    """
    n, m = p.shape
    if n == 0 or m == 0 or pool.shape[0] == 0:
        return None
    typical = float(torch.linalg.vector_norm(pool)) / np.sqrt(pool.shape[0])
    if typical == 0:
        return None
    limit = tolerance * typical
    tree = cKDTree(fingerprints(pool))
    prints = fingerprints(p)
    probe = sample_index(n, 16).numpy()
    if not _partners(p, pool, probe, np.asarray(tree.query(prints[probe])[1]), limit).mean() > 0.6:
        return None
    nearest: np.ndarray = np.asarray(tree.query(prints)[1]).astype(np.int64)
    found = _partners(p, pool, np.arange(n), nearest, limit)
    if prefer_same:
        own = np.arange(min(n, pool.shape[0]))
        same = _partners(p, pool, own, own, limit)
        nearest[own[same]] = own[same]
        found[own[same]] = True
    return Match(nearest, found)


def _partners(p: Tensor, pool: Tensor, rows: np.ndarray, partners: np.ndarray, limit: float) -> np.ndarray:
    difference = p[torch.from_numpy(rows)] - pool[torch.from_numpy(np.asarray(partners))]
    return np.asarray((torch.linalg.vector_norm(difference, dim=1) <= limit).numpy())


def axis_groups(shape: tuple[int, ...], least: int = 1, most: int = 8) -> Iterator[tuple[int, ...]]:
    """Contiguous groups of axes of size > 1, single axes first (last axis first), then longer groups."""
    axes = [i for i, n in enumerate(shape) if n > 1]
    for length in range(least, min(most, len(axes)) + 1):
        for start in reversed(range(len(axes) - length + 1)):
            yield tuple(axes[start : start + length])


def as_rows(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Bring `axes` to the front and flatten: [prod(axes), rest]."""
    rest = [i for i in range(x.ndim) if i not in axes]
    count = int(np.prod([x.shape[i] for i in axes]))
    return x.permute(*axes, *rest).reshape(count, -1)


def from_rows(rows: Tensor, axes: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Undo `as_rows`."""
    rest = [i for i in range(len(shape)) if i not in axes]
    order = [*axes, *rest]
    inverse = [order.index(i) for i in range(len(shape))]
    return rows.reshape([shape[i] for i in order]).permute(inverse)
