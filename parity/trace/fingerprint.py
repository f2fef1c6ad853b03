"""The fingerprint of a tensor: statistics, an exact hash and a linear sketch, on the device where it lies.

For a tensor x in logical (row-major) order the sketch adds up s(i)·x[i] into bucket i mod K, with an independent sign s(i) per element from
an integer hash of i. It is linear, so ‖sketch(x) − sketch(y)‖ estimates ‖x − y‖ with a relative standard deviation of about
sqrt(2/K)/2 ≈ 2 % (DESIGN.md section 4; Charikar et al. 2002). K is prime and divides no axis, so that an error in one channel
spreads over all buckets. The exact hash is multilinear over the bits, modulo 2^64 (Lemire and Kaser 2014): integer sums, so it is
the same on every device.

Large floating tensors in the processor's memory go through one compiled pass (`parity.trace.compiled`, where numba is installed); everything else through
the plain one below, which gives the same numbers: sums up to the order of summation, the rest exactly.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from parity.trace import Stats

BUCKETS = (1021, 1019, 1013, 1009)
_PLACES = 20
_BLOCK = {"cpu": 1 << _PLACES, "cuda": 1 << 24}  # elements at a time: what fits a cache, what fills a card
_CACHED_BLOCKS = 8
_COMPILED = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_LEAST = 4096  # elements from which on loading the compiled pass pays; the choice depends on the tensor alone
_WORD = (1 << 64) - 1
_LOW, _HIGH = (2, 1), (0x9E3779B1, 0x7F4A7C15)  # what Σ bits·weight and Σ bits count in each half of the hash


class Fingerprint(NamedTuple):
    """What is kept of a tensor in place of its values. sketch: float64 [K], on the CPU."""

    stats: Stats
    digest: str
    sketch: Tensor


def buckets(shape: Sequence[int]) -> int:
    """Return the number of sketch buckets: a prime that divides no axis. It depends on the number of elements alone, so that a reshape has the same sketch."""
    count = math.prod(shape)
    return next((k for k in BUCKETS if count % k), BUCKETS[0])


def fingerprint(value: Tensor) -> Fingerprint:
    """Return statistics, hash and sketch of `value`, in one pass where there is a compiled one."""
    return _compiled(value) or Fingerprint(_plain_stats(value), _plain_digest(value), _plain_sketch(value))


def sketch(value: Tensor) -> Tensor:
    """Return the linear sketch of `value`, float64 [K] on the CPU. Non-finite elements count as zero."""
    found = _compiled(value)
    return found.sketch if found else _plain_sketch(value)


def stats(value: Tensor) -> Stats:
    """Return count, census of non-finite values, and min, max, sum and sum of squares of the finite ones."""
    found = _compiled(value)
    return found.stats if found else _plain_stats(value)


def digest(value: Tensor) -> str:
    """Return an exact hash of dtype, shape and bits (any NaN counts as the same NaN), 32 hex digits, equal on every device."""
    found = _compiled(value)
    return found.digest if found else _plain_digest(value)


# -- the compiled pass ------------------------------------------------------------------------------------------------


@functools.cache
def compiled_pass() -> ModuleType | None:
    """Return the module of the compiled pass, or None where numba is not installed or does not work."""
    try:
        return importlib.import_module("parity.trace.compiled")
    except Exception:  # numba is an extra, and an old one next to a new numpy raises what it likes
        return None


def _compiled(value: Tensor) -> Fingerprint | None:
    """Return the fingerprint from one compiled pass; None for what it does not cover, and for what is not finite throughout."""
    real = value.detach()
    if real.dtype == torch.complex64:
        real = torch.view_as_real(real.resolve_conj().resolve_neg())
    count = real.numel()
    integer = _COMPILED.get(real.dtype)
    if integer is None or real.device.type != "cpu" or not _LEAST <= count < 1 << 32:
        return None
    code = compiled_pass()
    if code is None:
        return None
    half = integer == torch.int16
    bits = real.resolve_neg().reshape(-1).view(integer).numpy().view("uint16" if half else "uint32")
    found = code.sums(bits, real.dtype == torch.float16, buckets(value.shape))
    if found is None:
        return None
    ends, (zeros, product, total), folded = found
    low, high, whole, squares = (float(x) for x in ends)
    made = Stats(count, 0, 0, 0, int(zeros), None, low + 0.0, high + 0.0, whole, squares)
    return assembled(value.dtype, tuple(value.shape), made, int(product), int(total), torch.from_numpy(folded))


def assembled(
    dtype: torch.dtype, shape: tuple[int, ...], made: Stats, product: int, total: int, folded: Tensor
) -> Fingerprint:
    """Return the fingerprint from what a pass added up: product is Σ bits·weight, total is Σ bits."""
    placed = _weights_of_places(made.count), _sum_of_places(made.count)
    return Fingerprint(made, _hash_of(dtype, shape, product + placed[0], total + placed[1]), folded)


def hash_of_classes(count: int, product: int, total: int) -> str:
    """Return the hash of the places and classes of what is not finite, from Σ class·weight and Σ class (1 for NaN, 2 and 3 for the infinities)."""
    return _hash_of(torch.int64, (count,), product + _weights_of_places(count), total + _sum_of_places(count))


def _hash_of(dtype: torch.dtype, shape: tuple[int, ...], product: int, total: int) -> str:
    """Return the hash from Σ (bits + place + 1)·weight and Σ (bits + place + 1)."""
    start = _start(dtype, shape)
    low, high = ((start + a * product + b * total) & _WORD for a, b in (_LOW, _HIGH))
    return f"{low:016x}{high:016x}"


@functools.lru_cache(maxsize=4096)
def _start(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return what the hash begins with: FNV-1a of dtype and shape."""
    head = f"{dtype}{shape}".encode()
    return functools.reduce(lambda h, c: (h * 1099511628211 ^ c) & _WORD, head, 14695981039346656037)


def _sum_of_places(count: int) -> int:
    """Return Σ (place + 1) over `count` elements; the place is the index down to a multiple of 2^20."""
    chunks, rest = divmod(count, 1 << _PLACES)
    return (chunks * (chunks - 1) // 2 << 2 * _PLACES) + chunks * rest * (1 << _PLACES) + count


@functools.lru_cache(maxsize=4096)
def _weights_of_places(count: int) -> int:
    """Return Σ (place + 1)·weight over `count` elements: it depends on nothing else."""
    chunks, rest = divmod(count, 1 << _PLACES)
    whole = sum(((c << _PLACES) + 1) * _chunk_weights(c, 1 << _PLACES) for c in range(chunks))
    return whole + ((chunks << _PLACES) + 1) * _chunk_weights(chunks, rest)


@functools.lru_cache(maxsize=8192)
def _chunk_weights(chunk: int, count: int) -> int:
    code, start = compiled_pass(), chunk << _PLACES
    if code is not None and start + count <= 1 << 32:
        return int(code.weights_sum(start, start + count))
    return int(_make_hashes(start, count, "cpu").sum(dtype=torch.int64))


# -- the plain pass ---------------------------------------------------------------------------------------------------


def _plain_sketch(value: Tensor) -> Tensor:
    flat = _flat(value)
    total = torch.zeros(buckets(value.shape), dtype=torch.float64, device=flat.device)
    width = total.numel()
    floating = flat.is_floating_point() and flat.element_size() > 1
    for start, block in _blocks(flat):
        block = torch.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0) if floating else _widened(block)
        signed = torch.where(_hashes(start, flat.device)[: block.numel()] < 0, -block, block)
        total += _fold(signed, start % width, width)
    return total.cpu()


def _plain_stats(value: Tensor) -> Stats:
    flat = _flat(value)
    if flat.numel() == 0:
        return Stats(count=0)
    wide = flat.to(torch.float64)
    total, squares = float(wide.sum()), float(wide.dot(wide))
    zeros = int(flat.numel() - torch.count_nonzero(wide))  # float8 has no count of its own
    if squares == squares and squares != float("inf"):
        low, high = torch.aminmax(wide)
        return Stats(flat.numel(), 0, 0, 0, zeros, None, float(low), float(high), total, squares)
    finite = torch.isfinite(wide)
    good = wide[finite]
    bad = int(torch.argmin(finite.to(torch.uint8))) if good.numel() < wide.numel() else None
    return Stats(
        count=flat.numel(),
        nan=int(torch.isnan(wide).sum()),
        posinf=int((wide == float("inf")).sum()),
        neginf=int((wide == float("-inf")).sum()),
        zeros=zeros,
        first_nonfinite=bad,
        min=float(good.min()) if good.numel() else 0.0,
        max=float(good.max()) if good.numel() else 0.0,
        sum=float(good.sum()),
        sumsq=float(good.dot(good)),
        where=_plain_digest(_classes(wide)) if bad is not None else "",
    )


def _classes(wide: Tensor) -> Tensor:
    """Return 1 for NaN, 2 and 3 for the infinities, 0 for what is finite."""
    return torch.isnan(wide) + 2 * (wide == float("inf")) + 3 * (wide == float("-inf")).to(torch.uint8)


def _plain_digest(value: Tensor) -> str:
    flat = _flat(value)
    if flat.is_floating_point() and flat.element_size() >= 2 and bool(torch.isnan(flat).any()):
        flat = torch.where(torch.isnan(flat), torch.full_like(flat, float("nan")), flat)
    bits = _bits(flat)
    product = total = 0
    for start, block in _blocks(bits):
        block = block.to(torch.int64) + _step(start, block) + 1
        weights = _hashes(start, bits.device)[: block.numel()].to(torch.int64)
        product += int((block * weights).sum())
        total += int(block.sum())
    return _hash_of(value.dtype, tuple(value.shape), product, total)


def _step(start: int, block: Tensor) -> Tensor | int:
    """Return the place of each element, down to a multiple of 2^20, whatever the size of the blocks."""
    places = torch.arange(start, start + block.numel(), device=block.device) if block.numel() > 1 << _PLACES else start
    return places >> _PLACES << _PLACES


def distance(left: Tensor, right: Tensor) -> float:
    """Estimate ‖x − y‖₂ from the sketches of x and y."""
    return float(torch.linalg.vector_norm(left - right))


def _flat(value: Tensor) -> Tensor:
    value = value.detach()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj().resolve_neg())
    if value.dtype == torch.bool:
        value = value.to(torch.uint8)
    return value.reshape(-1)


def _bits(flat: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.contiguous().view(integer)


def _widened(block: Tensor) -> Tensor:
    """Whole numbers (whose negatives may not exist) and the narrow floats (which have no arithmetic) in float64, non-finite ones as zero."""
    wide = block.to(torch.float64)
    return torch.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0) if block.is_floating_point() else wide


def _size(device: torch.device) -> int:
    return _BLOCK.get(device.type, _BLOCK["cpu"])


def _blocks(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    size = _size(flat.device)
    for start in range(0, flat.numel(), size):
        yield start, flat[start : start + size]


def _fold(signed: Tensor, shift: int, width: int) -> Tensor:
    """Add element j into bucket (j + shift) mod width, in float64."""
    rows = -(-(signed.numel() + shift) // width)
    padded = torch.zeros(rows * width, dtype=signed.dtype, device=signed.device)
    padded[shift : shift + signed.numel()] = signed
    return padded.view(rows, width).sum(0, dtype=torch.float64)


def _hashes(start: int, device: torch.device) -> Tensor:
    """Return the signed 32-bit hashes of the indices of the block that begins at `start`; the first blocks are kept."""
    size = _size(device)
    make = (
        _kept_hashes
        if start < _CACHED_BLOCKS * _BLOCK["cpu"] or (device.type == "cuda" and start < 2 * size)
        else _make_hashes
    )
    return make(start, size, str(device))


@functools.lru_cache(maxsize=2 * _CACHED_BLOCKS)
def _kept_hashes(start: int, size: int, device: str) -> Tensor:
    return _make_hashes(start, size, device)


def _make_hashes(start: int, size: int, device: str) -> Tensor:
    """lowbias32 (Wellons 2018) of the low 32 bits of the index, mixed with the high ones; exact integer arithmetic in int64."""
    index = torch.arange(start, start + size, dtype=torch.int64, device=device)
    x = (index & 0xFFFFFFFF) ^ ((index >> 32) * 0x9E3779B1 & 0xFFFFFFFF)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x - (x >> 31 << 32)).to(torch.int32)
