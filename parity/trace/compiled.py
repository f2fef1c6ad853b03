"""One compiled pass over float32, bfloat16 and float16 in the processor's memory: statistics, the sums of the hash, the sketch (numba).

Blocks of two rows of K elements stay in the first cache: bits and signs, hash, fold. Only what is finite comes through here; where a block holds
anything else the pass gives up, and the plain one (`parity.trace.fingerprint`) counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32, int64, njit, uint32, uint64

_SIGN = 0x80000000
_ROWS = 16  # of a block: three times 64 kB of work, which the second cache holds


def _jit(**options: Any) -> Callable[[Any], Any]:
    """Compile on first use and keep the result on disk; without a folder to keep it in, compile in every process."""

    def wrap(function: Any) -> Any:
        try:
            return njit(boundscheck=False, nogil=True, cache=True, **options)(function)
        except RuntimeError:
            return njit(boundscheck=False, nogil=True, **options)(function)

    return wrap


@_jit()
def _weigh(start, bits, weights, signed):
    """Fill in the hashes of the indices and the values with their signs; return the zeros, and the largest bits, signed and unsigned."""
    zeros, most, last = uint32(0), int32(-_SIGN), uint32(0)
    for j in range(bits.size):
        x = uint32(start + uint32(j))
        x = uint32(x ^ (x >> uint32(16)))
        x = uint32(x * uint32(0x7FEB352D))
        x = uint32(x ^ (x >> uint32(15)))
        x = uint32(x * uint32(0x846CA68B))
        x = uint32(x ^ (x >> uint32(16)))
        weights[j] = x
        u = bits[j]
        signed[j] = u ^ (x & uint32(_SIGN))
        most, last = max(most, int32(u)), max(last, u)
        zeros += uint32(uint32(u << uint32(1)) == uint32(0))
    return zeros, most, last


@_jit()
def _least(bits):
    """Return the least bits: the least of values without negatives, the largest of negatives alone."""
    found = uint32(0xFFFFFFFF)
    for j in range(bits.size):
        found = min(found, bits[j])
    return found


@_jit()
def _hash(bits, weights):
    """Return Σ bits·weight and Σ (bits + 2^31), both taken as signed 32-bit numbers, of two elements a word."""
    product, words, upper = int64(0), uint64(0), uint64(0)
    for j in range(bits.size):
        v, w = bits[j], weights[j]
        a, b = v >> uint64(32), w >> uint64(32)
        product += int64(int32(v)) * int64(int32(w)) + int64(int32(a)) * int64(int32(b))
        raised = v ^ uint64(0x8000000080000000)
        words += raised
        upper += raised >> uint64(32)
    return product, words - (upper << uint64(32)) + upper


@_jit(fastmath={"reassoc", "nsz", "contract", "arcp"})
def _fold(values, turned, buckets):
    """Add rows with their signs into the buckets, two at a time; return their sum and sum of squares. All in float64."""
    total, squares = 0.0, 0.0
    for r in range(0, values.shape[0] - 1, 2):
        for j in range(buckets.size):
            a, b = np.float64(turned[r, j]), np.float64(turned[r + 1, j])
            total += np.float64(values[r, j]) + np.float64(values[r + 1, j])
            squares += a * a + b * b
            buckets[j] += a + b
    return total, squares


@_jit()
def _widen(halves, is_half, bits, values, own):
    """Bring bfloat16 (or float16: `is_half`) to the bits of float32, exactly; `own`: its own bits, as signed 32-bit numbers."""
    for j in range(halves.size):
        x = uint32(halves[j]) << uint32(16)
        bits[j] = x
        own[j] = uint32(int32(x) >> int32(16))
    if is_half:
        for j in range(halves.size):
            x = uint32(halves[j])
            rest = (x & uint32(0x7FFF)) << uint32(13)
            bits[j] = rest
            values[j] *= float32(2.0**112)  # exponents from 15 to 127, also of what has none
            lost = (
                uint32(0x7F800000) if rest >= uint32(0x0F800000) else uint32(0)
            )  # infinity and NaN stay what they are
            bits[j] |= (x & uint32(0x8000)) << uint32(16) | lost


@_jit()
def _copy(source, bits):
    for j in range(source.size):
        bits[j] = source[j]


@_jit()
def _block(start, count, work, totals, ends, buckets):
    """Take in one block of `count` elements, whose bits lie in `work`; tell whether all of them are finite."""
    bits, rows, weights, signed, words, hashes, turned, edge, edges = work
    zeros, most, last = _weigh(start, bits[:count], weights, signed)
    product, total = _hash(words, hashes)
    added, squares = _fold(rows, turned, buckets)
    if squares - squares != 0.0:
        return False
    edge[0], edge[1] = last, uint32(most)
    if most < 0 or last < uint32(_SIGN):
        edge[1 if most < 0 else 0] = _least(bits[:count])
    ends[0], ends[1] = min(ends[0], edges[0]), max(ends[1], edges[1])
    ends[2] += added
    ends[3] += squares
    totals[0] += zeros
    totals[1] += product
    totals[2] += int64(total) - int64(bits.size) * int64(_SIGN)
    return True


@_jit()
def _singles(source, work, totals, ends, buckets):
    """Add up the bits of float32; tell whether all is finite."""
    bits, size = work[0], work[0].size
    for start in range(0, source.size, size):
        count = min(size, source.size - start)
        _copy(source[start : start + count], bits)
        for j in range(count, size):
            bits[j] = work[2][j] = work[3][j] = 0
        if not _block(uint32(start), count, work, totals, ends, buckets):
            return False
    return True


@_jit()
def _halves(source, is_half, values, own, work, totals, ends, buckets):
    """Add up the bits of bfloat16 (or float16: `is_half`); tell whether all is finite."""
    bits, size = work[0], work[0].size
    for start in range(0, source.size, size):
        count = min(size, source.size - start)
        _widen(source[start : start + count], is_half, bits, values, own)
        for j in range(count, size):
            bits[j] = own[j] = work[2][j] = work[3][j] = 0
        if not _block(uint32(start), count, work, totals, ends, buckets):
            return False
    return True


def sums(source: Any, is_half: bool, width: int) -> tuple[Any, Any, Any] | None:
    """Return (ends, totals, buckets) of an array of bits, or None where it holds what is not finite.

    source: uint32[n] for float32, uint16[n] for bfloat16, and for float16 with `is_half`; n below 2^32. ends: min, max, sum and sum of squares;
    totals: zeros, Σ bits·weight, Σ bits; buckets: the sketch, float64 [width].
    """
    rows = min(_ROWS, 2 * -(-len(source) // (2 * width)))
    words, hashes, turned, own = (np.empty(rows * width // 2, np.uint64) for _ in range(4))
    edge = np.empty(2, np.uint32)
    bits, weights, signed = (a.view(np.uint32) for a in (words, hashes, turned))
    values, signs = (a.view(np.float32) for a in (words, turned))
    totals, ends, buckets = np.zeros(3, np.int64), np.array([np.inf, -np.inf, 0.0, 0.0]), np.zeros(width)
    singles = source.dtype == np.uint32
    paired = words if singles else own
    shape = (rows, width)
    work = (
        bits,
        values.reshape(shape),
        weights,
        signed,
        paired,
        hashes,
        signs.reshape(shape),
        edge,
        edge.view(np.float32),
    )
    if singles:
        whole = _singles(source, work, totals, ends, buckets)
    else:
        whole = _halves(source, is_half, values, own.view(np.uint32), work, totals, ends, buckets)
    return (ends, totals, buckets) if whole else None


@_jit()
def weights_sum(start, stop):
    """Return the sum of the hashes of the indices from `start` to `stop` (below 2^32), as signed 32-bit numbers."""
    total = int64(0)
    for i in range(start, stop):
        x = uint32(i)
        x = uint32(x ^ (x >> uint32(16)))
        x = uint32(x * uint32(0x7FEB352D))
        x = uint32(x ^ (x >> uint32(15)))
        x = uint32(x * uint32(0x846CA68B))
        total += int64(int32(x ^ (x >> uint32(16))))
    return total
