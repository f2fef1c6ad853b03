"""Say what an index map is in words: P[i] = R[index[i]] as a roll, a flip, transposed digits, blocks, or swaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Structure:
    """Structure of a map. `kind`: identity, flip, roll, deinterleave, interleave, digits, inner (same map in every
    group of `period`),
    blocks (map over `count` blocks of `period`), swaps, repeated (not one to one), arbitrary. `inner`: the map inside
    or over the blocks."""

    kind: str
    length: int
    shift: int = 0
    period: int = 0
    count: int = 0
    sizes: tuple[int, ...] = ()  # of the reference's digits, slowest first
    order: tuple[int, ...] = ()  # which reference digit the port has, slowest first
    moved: tuple[int, ...] = ()
    inner: Structure | None = None
    mapping: tuple[int, ...] = field(default=(), repr=False)

    @property
    def text(self) -> str:
        return _text(self)

    @property
    def leaf(self) -> Structure:
        """The innermost description: what happens inside a group or over blocks."""
        return self.inner.leaf if self.inner is not None else self


def describe(index: Index) -> Structure:
    """Return the simplest structure that reproduces `index` exactly.

    >>> describe(np.array([0, 2, 4, 1, 3, 5])).kind
    'deinterleave'
    """
    n = len(index)
    simple = _simple(index)
    if simple is not None:
        return simple
    if len(np.unique(index)) < n:
        return Structure("repeated", n, moved=_moved(index), mapping=tuple(index.tolist()[:64]))
    inner, blocks = _inner(index), _blocks(index)
    # blocks that move inside groups are simply blocks: six modulation chunks, not two groups of three
    if inner is not None and (blocks is None or inner.inner is None or inner.inner.kind not in {"blocks", "swaps"}):
        return inner
    if blocks is not None:
        return blocks
    moved = _moved(index)
    kind = "swaps" if len(moved) <= max(2, n // 8) else "arbitrary"
    return Structure(kind, n, moved=moved[:64], mapping=tuple(index.tolist()[:64]))


def candidates(n: int, most: int = 600) -> Iterator[Index]:
    """Index maps that layouts usually make on an axis of n: transposed digits of two or three factors, and their inner
    and outer forms.
    """
    seen: set[bytes] = set()
    for a in _divisors(n):
        for b in _divisors(n // a):
            sizes = (a, b, n // a // b)
            for order in ((1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)):
                index = np.arange(n).reshape(sizes).transpose(order).reshape(-1)
                key = index.tobytes()
                if key not in seen and (index != np.arange(n)).any():
                    seen.add(key)
                    yield index
                if len(seen) >= most:
                    return


def _moved(index: Index) -> tuple[int, ...]:
    return tuple(np.nonzero(index != np.arange(len(index)))[0].tolist())


def _simple(index: Index) -> Structure | None:
    """Identity, flip, roll or transposed digits of the whole axis."""
    n = len(index)
    positions = np.arange(n)
    if np.array_equal(index, positions):
        return Structure("identity", n)
    if n > 2 and np.array_equal(index, positions[::-1]):
        return Structure("flip", n)
    shift = int(index[0])
    if np.array_equal(index, (positions + shift) % n):
        # P[i] = R[i + shift]: torch.roll(R, -shift)
        return Structure("roll", n, shift=-shift if shift <= n // 2 else n - shift)
    return _digits(index)


def _digits(index: Index) -> Structure | None:
    """The map as R.reshape(sizes).permute(order).reshape(-1), if it is one."""
    n = len(index)
    if index[0] != 0 or n < 4:
        return None
    found: list[tuple[int, int]] = []  # (size, stride), fastest digit of the port first
    rest = index
    while len(rest) > 1:
        stride = int(rest[1] - rest[0])
        breaks = np.nonzero(np.diff(rest) != stride)[0]
        size = int(breaks[0]) + 1 if len(breaks) else len(rest)
        if stride <= 0 or len(rest) % size:
            return None
        found.append((size, stride))
        rest = rest[::size]
    by_stride = sorted(range(len(found)), key=lambda i: -found[i][1])  # reference digits, slowest first
    sizes = tuple(found[i][0] for i in by_stride)
    order = tuple(by_stride.index(i) for i in reversed(range(len(found))))
    rebuilt = np.arange(n).reshape(sizes).transpose(order).reshape(-1) if int(np.prod(sizes)) == n else None
    if rebuilt is None or not np.array_equal(rebuilt, index):
        return None
    if order[0] == 0 or order[-1] == len(order) - 1:
        return None  # the slowest digit stays: an inner map; the fastest stays: a map of blocks
    kind = "digits"
    if len(sizes) == 2:
        kind = (
            "deinterleave"
            if sizes[1] == 2 and sizes[0] > 2
            else "interleave"
            if sizes[0] == 2 and sizes[1] > 2
            else "digits"
        )
    return Structure(kind, n, sizes=sizes, order=order)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _inner(index: Index) -> Structure | None:
    """The same map inside every group of `period` (heads, patches)."""
    n = len(index)
    for period in _divisors(n):
        if period < 2 or period == n:
            continue
        groups = index.reshape(-1, period) - np.arange(0, n, period)[:, None]
        if groups.min() >= 0 and groups.max() < period and (groups == groups[0]).all():
            return Structure("inner", n, period=period, count=n // period, inner=describe(groups[0]))
    return None


def _blocks(index: Index) -> Structure | None:
    """A map of whole blocks of `period` consecutive entries."""
    n = len(index)
    for period in reversed(_divisors(n)):
        if period < 2 or period == n:
            continue
        groups = index.reshape(-1, period)
        if (groups[:, 0] % period == 0).all() and (groups - groups[:, :1] == np.arange(period)).all():
            over = groups[:, 0] // period
            return Structure(
                "blocks", n, period=period, count=n // period, inner=describe(over), mapping=tuple(over.tolist()[:64])
            )
    return None


def _text(s: Structure) -> str:
    if s.kind == "identity":
        return "unchanged"
    if s.kind == "flip":
        return "reversed"
    if s.kind == "roll":
        return "its halves swapped" if 2 * abs(s.shift) == s.length else f"rolled by {s.shift}"
    if s.kind == "deinterleave":
        return "de-interleaved (even entries first, then odd)"
    if s.kind == "interleave":
        return "interleaved (first and second half alternate)"
    if s.kind == "digits":
        letters = "abcdefgh"
        left = " ".join(letters[: len(s.sizes)])
        right = " ".join(letters[i] for i in s.order)
        values = ", ".join(f"{letters[i]}={size}" for i, size in enumerate(s.sizes))
        return f"packed as ({right}) instead of ({left}) with {values}"
    if s.kind == "inner" and s.inner is not None:
        return f"{s.inner.text} inside every group of {s.period}"
    if s.kind == "blocks" and s.inner is not None:
        listed = "" if s.inner.kind not in {"swaps", "arbitrary"} or s.count > 16 else f": order {list(s.mapping)}"
        return f"{s.inner.text if not listed else 'reordered'} in blocks of {s.period}{listed}"
    if s.kind == "repeated":
        return f"built from repeated entries (order {list(s.mapping[:12])}{'…' if s.length > 12 else ''})"
    if s.kind == "swaps":
        return f"with entries {list(s.moved[:8])}{'…' if len(s.moved) > 8 else ''} exchanged"
    return f"in another order ({len(s.moved)}{'+' if len(s.moved) >= 64 else ''} of {s.length} entries moved)"
