"""Fingerprints on a card: one Triton kernel reads a tensor where it lies, nothing waits, and what it found is fetched for many tensors at once.

Each program takes consecutive rows of K elements, so that a lane is a bucket of the sketch, and leaves partial sums; a second, small kernel adds them up in a
fixed order: the same tensor has the same bits of a sketch in every run. Hash, counts and extremes equal the processor's exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.trace import Stats
from parity.trace.card_kernel import gather, one_pass
from parity.trace.fingerprint import Fingerprint, assembled, buckets, hash_of_classes

_LANES = 1024  # of a program: at least K
_CAPACITY = 512  # tensors between two fetches: 4 MB
_PROGRAMS = 2  # a multiprocessor
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
        quick = kind <= _SINGLE and entry.count < 1 << 31 and each < 1 << 15
        one_pass[(programs,)](
            bits, table, self._folded, self._ends, self._totals, entry.count, rows, each, *sizes[1:], *strides,
            WIDTH=entry.width, LANES=_LANES, KIND=kind, NAN=nan, AXES=axes, QUICK=quick, num_warps=8,
        )  # fmt: skip
        lanes = 128
        gather[(-(-entry.width // lanes) + 1,)](
            self._folded, self._ends, self._totals, self._sketches[slot], self._all_ends[slot], self._all_totals[slot],
            programs, WIDTH=entry.width, LANES=lanes, CHUNK=32, num_warps=4,
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
