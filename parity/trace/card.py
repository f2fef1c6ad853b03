"""Fingerprints on a card: one Triton kernel reads a tensor where it lies, nothing waits, and what it found is fetched for many tensors at once.

Each program takes consecutive rows of K elements, so that a lane is a bucket of the sketch, and leaves partial sums; a second, small kernel adds them up in a
fixed order: the same tensor has the same bits of a sketch in every run. Hash, counts and extremes equal the processor's exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from parity.trace import Stats
from parity.trace.fingerprint import Fingerprint, assembled, buckets, hash_of_classes

_LANES = 1024  # of a program: at least K
_CAPACITY = 512  # tensors between two fetches: 4 MB
_PROGRAMS = 4  # a multiprocessor
_MOST_AXES = 4  # that are not one stretch of memory; more are copied
_BF16, _HALF, _SINGLE, _DOUBLE, _SIGNED, _UNSIGNED, _TABLE = range(7)
_FLOATS = {
    torch.bfloat16: (_BF16, torch.int16, 0x7FC0),
    torch.float16: (_HALF, torch.int16, 0x7E00),
    torch.float32: (_SINGLE, torch.int32, 0x7FC00000),
    torch.float64: (_DOUBLE, torch.int64, 0x7FF8000000000000),
}
_WHOLE = {torch.int16: _SIGNED, torch.int32: _SIGNED, torch.int64: _SIGNED}
_WHOLE |= {torch.uint16: _UNSIGNED, torch.uint32: _UNSIGNED, torch.uint64: _UNSIGNED}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _weights(index):
    """lowbias32 of the low half of the index, mixed with the high one (see `parity.trace.fingerprint`)."""
    x = (index & 0xFFFFFFFF).to(tl.uint32) ^ ((index >> 32).to(tl.uint32) * tl.full((), 0x9E3779B1, tl.uint32))
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return (x ^ (x >> 16)).to(tl.int32, bitcast=True)


@triton.jit
def _offset(index, n1, n2, n3, s0, s1, s2, s3, AXES: tl.constexpr):
    """Return where an element lies: its index in order, through at most four axes of any strides (0 where one is expanded)."""
    if AXES == 0:
        return index
    place = index * 0
    if AXES >= 4:
        place += (index % n3) * s3
        index = index // n3
    if AXES >= 3:
        place += (index % n2) * s2
        index = index // n2
    if AXES >= 2:
        place += (index % n1) * s1
        index = index // n1
    return place + index * s0


@triton.jit
def _value(bits, table, KIND: tl.constexpr):
    if KIND == 0:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif KIND == 1:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    elif KIND == 2:
        return bits.to(tl.float32, bitcast=True)
    elif KIND == 3:
        return bits.to(tl.float64, bitcast=True)
    elif KIND == 4:
        return bits.to(tl.float64)
    elif KIND == 5:
        if bits.dtype == tl.int64:
            high, low = (bits >> 32) & 0xFFFFFFFF, bits & 0xFFFFFFFF
            return high.to(tl.float64) * 4294967296.0 + low.to(tl.float64)
        elif bits.dtype == tl.int32:
            return (bits.to(tl.int64) & 0xFFFFFFFF).to(tl.float64)
        else:
            return (bits.to(tl.int64) & 0xFFFF).to(tl.float64)
    else:
        return tl.load(table + bits.to(tl.int32))


@triton.jit
def _rows(
    source, table, folded, ends, totals, program, first, last, count, n1, n2, n3, s0, s1, s2, s3,
    WIDTH: tl.constexpr, LANES: tl.constexpr, KIND: tl.constexpr, NAN: tl.constexpr, AXES: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Take in the rows from `first` to `last`; return the sum of squares, which is finite where all is. CAREFUL: leave out and count what is not."""
    lane = tl.arange(0, LANES).to(tl.int64)
    sketch = tl.zeros((LANES,), tl.float64)
    total = tl.zeros((LANES,), tl.float64)
    squares = tl.zeros((LANES,), tl.float64)
    if KIND <= 2:
        low = tl.full((LANES,), float("inf"), tl.float32)
    else:
        low = tl.full((LANES,), float("inf"), tl.float64)
    high = -low
    product = tl.zeros((LANES,), tl.int64)
    added = tl.zeros((LANES,), tl.int64)
    zeros = tl.zeros((LANES,), tl.int32)
    nans, pluses, minuses = zeros, zeros, zeros
    place = tl.full((LANES,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    classes = tl.zeros((LANES,), tl.int64)
    for row in range(first, last):
        index = row * WIDTH + lane
        there = (lane < WIDTH) & (index < count)
        bits = tl.load(source + _offset(index, n1, n2, n3, s0, s1, s2, s3, AXES), mask=there, other=0)
        weight = _weights(index)
        x = _value(bits, table, KIND)
        own = bits.to(tl.int64)
        if CAREFUL:
            isnan = there & (x != x)
            plus = there & (x == float("inf"))
            minus = there & (x == -float("inf"))
            bad = isnan | plus | minus
            if KIND <= 3:
                own = tl.where(isnan, tl.full((), NAN, tl.int64), own)
            kind = isnan.to(tl.int64) + 2 * plus.to(tl.int64) + 3 * minus.to(tl.int64)
            classes += kind * weight.to(tl.int64)
            nans += isnan.to(tl.int32)
            pluses += plus.to(tl.int32)
            minuses += minus.to(tl.int32)
            place = tl.minimum(place, tl.where(bad, index, 0x7FFFFFFFFFFFFFFF))
            seen = there & (bad == 0)
            x = tl.where(bad, 0.0, x)
            zeros += (seen & (x == 0.0)).to(tl.int32)
        else:
            seen = there
            zeros += (there & (x == 0.0)).to(tl.int32)
        product += own * weight.to(tl.int64)
        added += own
        low = tl.minimum(low, tl.where(seen, x, float("inf")))
        high = tl.maximum(high, tl.where(seen, x, -float("inf")))
        wide = tl.where(there, x, 0.0).to(tl.float64)
        total += wide
        squares += wide * wide
        sketch += tl.where(weight < 0, -wide, wide)
    tl.store(folded + program * WIDTH + lane, sketch, mask=lane < WIDTH)
    tl.store(ends + program * 4, tl.min(low, 0).to(tl.float64))
    tl.store(ends + program * 4 + 1, tl.max(high, 0).to(tl.float64))
    tl.store(ends + program * 4 + 2, tl.sum(total, 0))
    whole = tl.sum(squares, 0)
    tl.store(ends + program * 4 + 3, whole)
    out = totals + program * 8
    tl.store(out, tl.sum(zeros.to(tl.int64), 0))
    tl.store(out + 1, tl.sum(product, 0))
    tl.store(out + 2, tl.sum(added, 0))
    tl.store(out + 3, tl.sum(nans.to(tl.int64), 0))
    tl.store(out + 4, tl.sum(pluses.to(tl.int64), 0))
    tl.store(out + 5, tl.sum(minuses.to(tl.int64), 0))
    tl.store(out + 6, tl.sum(classes, 0))
    tl.store(out + 7, tl.min(place, 0))
    return whole


@triton.jit(do_not_specialize=["count", "rows", "each", "n1", "n2", "n3", "s0", "s1", "s2", "s3"])
def _pass(
    source, table, folded, ends, totals, count, rows, each, n1, n2, n3, s0, s1, s2, s3,
    WIDTH: tl.constexpr, LANES: tl.constexpr, KIND: tl.constexpr, NAN: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """Leave the partial sums of this program's rows; once more with care where a value is not finite (a NaN shows in the sum of squares)."""
    program = tl.program_id(0).to(tl.int64)
    first = program * each
    last = tl.minimum(first + each, rows)
    whole = _rows(
        source, table, folded, ends, totals, program, first, last, count, n1, n2, n3, s0, s1, s2, s3,
        WIDTH, LANES, KIND, NAN, AXES, KIND == 3 or KIND == 6,
    )  # fmt: skip
    if KIND <= 2:
        if whole - whole != 0.0:  # a condition of its own: the one above is known when the kernel is compiled
            _rows(
                source, table, folded, ends, totals, program, first, last, count, n1, n2, n3, s0, s1, s2, s3,
                WIDTH, LANES, KIND, NAN, AXES, True,
            )  # fmt: skip


@triton.jit(do_not_specialize=["programs"])
def _gather(folded, ends, totals, sketch, all_ends, all_totals, programs, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """Add up what the programs left, in their order. The last program of this grid takes the numbers, the others a stretch of the sketch each."""
    part = tl.program_id(0)
    lane = part * LANES + tl.arange(0, LANES)
    if part * LANES < WIDTH:
        found = tl.zeros((LANES,), tl.float64)
        for p in range(programs):
            found += tl.load(folded + p * WIDTH + lane, mask=lane < WIDTH, other=0.0)
        tl.store(sketch + lane, found, mask=lane < WIDTH)
    else:
        four, eight = tl.arange(0, 4), tl.arange(0, 8)
        least = tl.load(ends + four)
        most = least
        summed = least
        counts = tl.load(totals + eight)
        earliest = counts
        for p in range(1, programs):
            more = tl.load(ends + p * 4 + four)
            least, most, summed = tl.minimum(least, more), tl.maximum(most, more), summed + more
            others = tl.load(totals + p * 8 + eight)
            counts, earliest = counts + others, tl.minimum(earliest, others)
        tl.store(all_ends + four, tl.where(four == 0, least, tl.where(four == 1, most, summed)))
        tl.store(all_totals + eight, tl.where(eight == 7, earliest, counts))


@dataclass(frozen=True)
class _Entry:
    """What is known of a tensor on the host: of its values, dtype and shape, and how many numbers it holds."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    count: int
    width: int


class Batch:
    """Fingerprints of tensors of one card and stream that are made and not fetched yet. `add` returns at once; `fetch` waits once for all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        units = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        self.programs = _PROGRAMS * units
        self._folded = torch.empty(self.programs * _LANES, dtype=torch.float64, device=device)
        self._ends = torch.empty(self.programs * 4, dtype=torch.float64, device=device)
        self._totals = torch.empty(self.programs * 8, dtype=torch.int64, device=device)
        self._sketches = torch.zeros(_CAPACITY, _LANES, dtype=torch.float64, device=device)
        self._all_ends = torch.zeros(_CAPACITY, 4, dtype=torch.float64, device=device)
        self._all_totals = torch.zeros(_CAPACITY, 8, dtype=torch.int64, device=device)
        self._tables: dict[torch.dtype, Tensor] = {}
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return len(self._entries) == _CAPACITY

    def add(self, value: Tensor) -> None:
        """Start the fingerprint of `value`. Raises IndexError when the batch is full."""
        real = value.detach()
        if real.is_complex():
            real = torch.view_as_real(real.resolve_conj())
        real = real.resolve_neg()
        entry = _Entry(value.dtype, tuple(value.shape), real.numel(), buckets(value.shape))
        slot = len(self._entries)
        if self.full:
            raise IndexError("the batch is full: fetch it first")
        self._entries.append(entry)
        if not entry.count:
            return
        kind, bits, nan, table = self._seen_as(real)
        sizes, strides = merged(bits)
        if len(sizes) > _MOST_AXES:
            bits = bits.contiguous()
            sizes, strides = [entry.count], [1]
        axes = 0 if strides == [1] else len(sizes)
        sizes, strides = sizes + [1] * (4 - len(sizes)), strides + [0] * (4 - len(strides))
        rows = -(-entry.count // entry.width)
        programs = max(1, min(self.programs, rows // 4))
        each = -(-rows // programs)
        programs = -(-rows // each)
        _pass[(programs,)](
            bits, table, self._folded, self._ends, self._totals, entry.count, rows, each, *sizes[1:], *strides,
            WIDTH=entry.width, LANES=_LANES, KIND=kind, NAN=nan, AXES=axes, num_warps=8,
        )  # fmt: skip
        lanes = 128
        _gather[(-(-entry.width // lanes) + 1,)](
            self._folded, self._ends, self._totals, self._sketches[slot], self._all_ends[slot], self._all_totals[slot],
            programs, WIDTH=entry.width, LANES=lanes, num_warps=4,
        )  # fmt: skip

    def _seen_as(self, real: Tensor) -> tuple[int, Tensor, int, Tensor]:
        """Return the kind of numbers, their bits, the bits that stand for any NaN, and what each byte means."""
        size, dtype = real.element_size(), real.dtype
        if dtype in _FLOATS:
            kind, integer, nan = _FLOATS[dtype]
            return kind, real.view(integer), nan, real
        if size > 1:
            return _WHOLE[dtype], real.view(_INTEGERS[size]), 0, real
        if dtype not in self._tables:
            every = torch.arange(256, dtype=torch.int16).to(torch.uint8)
            meant = every if dtype == torch.bool else every.view(dtype)
            self._tables[dtype] = meant.to(torch.float64).to(self.device)
        return _TABLE, real.view(torch.uint8), 0, self._tables[dtype]

    def fetch(self) -> list[Fingerprint]:
        """Wait for the card, and return the fingerprints in the order in which they were asked for."""
        entries, self._entries = self._entries, []
        count = len(entries)
        sketches = self._sketches[:count].cpu()
        ends, totals = self._all_ends[:count].tolist(), self._all_totals[:count].tolist()
        return [_made(entry, sketches[i, : entry.width].clone(), ends[i], totals[i]) for i, entry in enumerate(entries)]


def _made(entry: _Entry, sketch: Tensor, ends: list[float], totals: list[int]) -> Fingerprint:
    if not entry.count:
        return assembled(entry.dtype, entry.shape, Stats(count=0), 0, 0, torch.zeros_like(sketch))
    low, high, total, squares = ends
    zeros, product, added, nan, plus, minus, classes, first = totals
    bad = nan + plus + minus
    if bad == entry.count:
        low = high = 0.0
    stats = Stats(
        entry.count, nan, plus, minus, zeros, first if bad else None, low + 0.0, high + 0.0, total, squares,
        hash_of_classes(entry.count, classes, nan + 2 * plus + 3 * minus) if bad else "",
    )  # fmt: skip
    return assembled(entry.dtype, entry.shape, stats, product, added, sketch)


def merged(value: Tensor) -> tuple[list[int], list[int]]:
    """Return sizes and strides of a tensor with neighbouring axes that lie as one merged: one axis of stride 1 where it is contiguous."""
    sizes: list[int] = []
    strides: list[int] = []
    for n, step in zip(value.shape, value.stride(), strict=True):
        if n == 1:
            continue
        if sizes and strides[-1] == step * n:
            sizes[-1], strides[-1] = sizes[-1] * n, step
        else:
            sizes.append(n)
            strides.append(step)
    return sizes or [1], strides or [1]


def batch_of(value: Tensor, batches: dict[Any, Batch]) -> Batch | None:
    """Return the batch of a tensor's card and stream (a new one is kept in `batches`); None for what the kernel does not cover."""
    covered = value.dtype in _FLOATS or value.dtype in _WHOLE or value.is_complex() or value.element_size() == 1
    if not value.is_cuda or not covered or value.dtype == torch.complex32:
        return None
    key = (value.device, torch.cuda.current_stream(value.device).stream_id)
    if key not in batches:
        batches[key] = Batch(value.device)
    return batches[key]
