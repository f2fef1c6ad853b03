"""How far each pair of records is apart, in numbers. No opinion about why."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.align.pairs import Pair
from parity.compare.floors import FACTOR, FRAME, UNIT, Floors
from parity.result import Row
from parity.trace import ENDS, Record, Trace
from parity.trace.fingerprint import distance, sketch

HIDDEN = -9.9e3  # additive masks hide with at least this much: -1e4 and a bias
_LEAST = [torch.finfo(dtype).min for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)]
_SENTINELS = (*_LEAST, *(least / 2 for least in _LEAST), *(-(10.0**n) for n in range(4, 39)))
_BIAS, _COARSE = 100.0, 2.0**-8  # what a bias adds to a sentinel, and bf16 rounds off
_HUGE = 1e3  # times the usual size: a massive activation
_DROWNED = 1e-2  # of the norm is what all others hold together: an error of theirs does not show
_SMALL = 1e-4  # a record this much smaller than its site usually is, is judged on the site's scale


def measure(pairs: Iterable[Pair], reference: Trace, port: Trace, floors: Floors) -> list[Row]:
    """Measure every pair, in the reference's order."""
    pairs = list(pairs)
    scales = _scales((p.reference for p in pairs), reference)
    return [_measure_pair(pair, reference, port, floors, scales) for pair in pairs]


def relative_l2(p: Tensor, r: Tensor, scale: float = 0.0) -> float:
    """‖p − r‖₂ / max(‖r‖₂, scale), in float64; 0 when both are zero."""
    p, r = _wide(p), _wide(r)
    apart = float(torch.linalg.vector_norm(p - r))
    if not math.isfinite(apart):
        good = torch.isfinite(r) & torch.isfinite(p)
        if bool((~good & (r != p) & ~(r.isnan() & p.isnan())).any()):
            return math.inf
        r, p = torch.where(good, r, 0.0), torch.where(good, p, 0.0)
        apart = float(torch.linalg.vector_norm(p - r))
    whole = max(float(torch.linalg.vector_norm(r)), scale)
    if whole == 0:
        whole = float(torch.linalg.vector_norm(p))
    return apart / whole if whole > 0 else 0.0


def hidden_places(value: Tensor) -> Tensor | None:
    """Return where an additive mask (with or without a bias) hides: values far below all others. None when nothing is hidden."""
    if not value.numel() or float(value.min()) > HIDDEN:
        return None
    hidden = value <= HIDDEN
    rest = value[~hidden]
    if rest.numel() and float(rest.abs().max()) > -0.1 * HIDDEN:
        return None
    return hidden if _are_sentinels(value[hidden]) else None


def _are_sentinels(values: Tensor) -> bool:
    """Tell whether what hides was chosen to hide: infinity, the least number of a dtype, a power of ten, with a bias at most. No outlier is."""
    values = values[torch.isfinite(values)].double()
    near = torch.zeros_like(values, dtype=torch.bool)
    for sentinel in _SENTINELS:
        near |= (values - sentinel).abs() <= _BIAS + _COARSE * abs(sentinel)
    return bool(near.all())


def error_of(p: Tensor, r: Tensor, scale: float = 0.0) -> float:
    """Relative L2 error of all elements, or of those that a mask does not hide where that is larger: what it hides with drowns its bias."""
    error = relative_l2(p, r, scale)
    p, r = _wide(p), _wide(r)
    if not r.numel():
        return error
    small = drowned_places(r)
    if small is not None:
        error = max(error, relative_l2(p[small], r[small]))
    if float(r.min()) > HIDDEN:
        return error
    hidden = hidden_places(r)
    if hidden is None or bool(hidden.all()):
        return error
    seen = ~hidden & (p > HIDDEN)
    return max(error, relative_l2(p[seen], r[seen]))


def drowned_places(r: Tensor) -> Tensor | None:
    """Return where the elements are that a few huge ones drown: at most a hundredth of all holds nearly the whole norm. None where that is not so."""
    if not _is_peaked(r):
        return None
    size = r.abs().flatten()
    usual = float(size[size > 0].median()) if bool((size > 0).any()) else 0.0
    huge = size > _HUGE * usual
    if not 0 < int(huge.sum()) <= max(1, size.numel() // 100):
        return None
    rest = ~huge & torch.isfinite(size)
    if float(torch.linalg.vector_norm(size[rest])) > _DROWNED * float(torch.linalg.vector_norm(size)):
        return None
    return rest.reshape(r.shape)


def _is_peaked(r: Tensor) -> bool:
    """Tell cheaply whether a hundredth of the elements can hold the whole norm: the largest is far above the usual."""
    if r.numel() < 8:
        return False
    low, high = (float(end) for end in torch.aminmax(r))
    flat = r.flatten()
    return max(low * low, high * high) >= 0.9 * min(r.numel(), 100) * float(flat.dot(flat)) / r.numel()


def broadcasts(r: Sequence[int], p: Sequence[int]) -> tuple[int, ...] | None:
    """Return the common shape of two shapes that differ in axes of size one only."""
    if len(r) != len(p) or any(n != m and not (n and m and 1 in (n, m)) for n, m in zip(r, p, strict=True)):
        return None
    return tuple(max(n, m) for n, m in zip(r, p, strict=True))


def reshaped(r: Sequence[int], p: Sequence[int]) -> bool:
    """Tell whether one shape can be a view of the other: axes merged or split in place, axes of one put in or left out."""
    if math.prod(r) != math.prod(p):
        return False
    cuts = [set(itertools.accumulate((n for n in shape if n != 1), operator.mul)) for shape in (r, p)]
    return cuts[0] <= cuts[1] or cuts[1] <= cuts[0]


def _same_values(ref: Record, got: Record, tolerance: float) -> bool:
    """Tell whether two records hold the same values in some order, as far as statistics say."""
    a, b = ref.stats, got.stats
    if a is None or b is None or not a.count or not b.count:
        return True
    scale = max(abs(a.min), abs(a.max), 1e-300)
    near = (
        abs(x - y) <= max(tolerance, _SMALL) * scale
        for x, y in ((a.min, b.min), (a.max, b.max), (a.sum / a.count, b.sum / b.count))
    )
    return all(near) and math.isclose(a.sumsq, b.sumsq, rel_tol=2 * max(tolerance, _SMALL), abs_tol=1e-12)


def broadcast(r: Tensor, p: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return both values in their common shape when they differ in axes of size one only: a table for all samples, or one for each."""
    if broadcasts(r.shape, p.shape) is None:
        return None
    left, right = torch.broadcast_tensors(r, p)
    return left, right


def own_errors(reference: Trace, precise: Trace) -> dict[str, float]:
    """Return the reference's error against its higher-precision run, by key (floating records that both have)."""
    scales = _scales(reference, reference)
    errors = {}
    for record in reference:
        r, h = reference.tensor(record.key), precise.tensor(record.key)
        if r is None or h is None or r.shape != h.shape or not r.numel():
            continue
        if _is_picture(record) and h.dtype == r.dtype:
            errors[record.key] = float(_differs(r, h).double().mean())
        if not record.is_float:
            continue
        r, h = _wide(r), _wide(h)
        if not math.isfinite(float(r.sum()) + float(h.sum())):
            finite = torch.isfinite(r) & torch.isfinite(h)
            r, h = torch.where(finite, r, 0.0), torch.where(finite, h, 0.0)
        errors[record.key] = error_of(r, h, _scale_of(record, scales))
    return errors


def own_levels(reference: Trace, precise: Trace) -> dict[str, float]:
    """Return, by site of pictures in bytes, the most levels that a byte is off in the higher-precision run."""
    found: dict[str, float] = {}
    for record in reference:
        r, h = reference.tensor(record.key), precise.tensor(record.key)
        if _is_picture(record) and r is not None and h is not None and r.shape == h.shape and r.dtype == h.dtype:
            found[record.site] = max(found.get(record.site, 0.0), float((_wide(r) - _wide(h)).abs().max()))
    return found


def _measure_pair(pair: Pair, reference: Trace, port: Trace, floors: Floors, scales: Mapping[str, float]) -> Row:
    ref, got = pair.reference, pair.port
    row = Row(
        site=ref.site,
        coords=dict(ref.coords),
        kind=ref.kind,
        order=ref.order,
        error=math.nan,
        floor=floors.of(pair) if ref.is_float else 0.0,
        dtype=(ref.dtype, got.dtype),
        shape=ref.shape,
        how=pair.how,
        port=next((name for name in (got.origin, got.site) if name and name != ref.site), ""),
        precise=floors.local.get(ref.key, math.nan),
    )
    r, p = reference.tensor(ref.key), pair.port_tensor(port)
    if r is None or p is None:
        return _measure_sketches(row, pair, r, p, scales)
    if r.device != p.device:  # a table that one side keeps on the host
        r, p = r.cpu(), p.cpu()
    if r.is_complex() != p.is_complex():
        return replace(row, error=math.inf, diverged=True)
    if r.shape != p.shape:
        both = broadcast(r, p)
        if both is None:
            return replace(row, diverged=True)
        (r, p), row = both, replace(row, how="broadcast")
        wrong = _measure_floats(row, r, p, _scale_of(ref, scales), floors) if ref.is_float else row
        if wrong.diverged or (not ref.is_float and bool(_differs(r, p).any())):
            return replace(row, diverged=True)
    if r.numel() == 0:
        return replace(row, error=0.0, bitwise=True, diverged=_class_of(r) != _class_of(p))
    if not ref.is_float:
        share = float(_differs(r, p).double().mean())
        max_abs = float((_wide(p) - _wide(r)).abs().max())
        near = (
            _is_picture(ref) and p.dtype == r.dtype and max_abs <= max(1.0, FACTOR * floors.levels.get(ref.site, 0.0))
        )
        floor = _level_floor(ref, floors) if near else 0.0
        return replace(
            row,
            error=share,
            floor=floor,
            over=share,
            max_abs=max_abs,
            bitwise=share == 0,
            diverged=share > floor,
        )
    return _measure_floats(row, r, p, _scale_of(ref, scales), floors)


def _class_of(value: Tensor) -> str:
    """Return what kind of numbers a dtype holds: nothing else tells two empty tensors apart."""
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else str(value.dtype == torch.bool)


def _decibels(signal: float, noise: float) -> float:
    """Return 20 log10(signal / noise); infinite without noise, and where a norm is too large for a number."""
    if not (signal > 0 and noise > 0 and math.isfinite(signal) and math.isfinite(noise)):
        return math.inf
    return 20 * (math.log10(signal) - math.log10(noise))


def _is_picture(record: Record) -> bool:
    """Tell whether a record holds bytes that were rounded from values: a tie may fall to the other side."""
    return record.kind == "frame" and record.dtype == "uint8"


def _level_floor(record: Record, floors: Floors) -> float:
    """Return the share of bytes that may be off by a level (or FACTOR times the reference's own levels): its own share, and a few ties."""
    if not floors.measured:
        return floors.fixed if floors.fixed is not None else FRAME
    return max(FACTOR * floors.pooled.get(record.site, 0.0), FRAME, 1.5 / math.prod(record.shape))


def _measure_floats(row: Row, r: Tensor, p: Tensor, scale: float, floors: Floors) -> Row:
    if r.dtype == p.dtype and torch.equal(r, p):
        return replace(row, error=0.0, max_abs=0.0, cosine=1.0, sqnr_db=math.inf, ulp=0.0, bitwise=True)
    wr, wp = _wide(r).flatten(), _wide(p).flatten()
    d = wp - wr
    norm_d = float(torch.linalg.vector_norm(d))
    counts, other = (0, 0), False
    if not math.isfinite(norm_d):
        bad_r, bad_p = ~torch.isfinite(wr), ~torch.isfinite(wp)
        counts = (int(bad_r.sum()), int(bad_p.sum()))
        other = bool(((bad_r | bad_p) & ~((wr == wp) | (torch.isnan(wr) & torch.isnan(wp)))).any())
        good = ~(bad_r | bad_p)
        wr, wp = torch.where(good, wr, 0.0), torch.where(good, wp, 0.0)
        d = wp - wr
        norm_d = float(torch.linalg.vector_norm(d))
    norm_r, norm_p = float(torch.linalg.vector_norm(wr)), float(torch.linalg.vector_norm(wp))
    whole = max(norm_r, scale) or norm_p
    error = norm_d / whole if 0 < whole < math.inf else math.inf if whole and norm_d else 0.0
    if float(wr.min()) <= HIDDEN or _is_peaked(wr):
        error = max(error, error_of(wp, wr, scale))
    rms = whole / math.sqrt(wr.numel())
    size = d.abs()
    max_abs = float(size.max())
    unit = max(UNIT.get(t, 2.0**-4) for t in row.dtype) * 2
    diverged = other or (error > row.floor and max_abs > floors.absolute)
    return replace(
        row,
        error=error,
        max_abs=max_abs,
        cosine=float(wr.dot(wp)) / (norm_r * norm_p) if norm_r > 0 and norm_p > 0 else float(norm_r == norm_p),
        sqnr_db=_decibels(whole, norm_d),
        ulp=max_abs / (rms * unit) if rms > 0 else 0.0,
        over=float((size > row.floor * (wr.abs() + rms)).double().mean()) if diverged else 0.0,
        bitwise=norm_d == 0 and not any(counts) and r.dtype == p.dtype,
        nonfinite=counts,
        diverged=diverged,
    )


def _measure_sketches(row: Row, pair: Pair, r: Tensor | None, p: Tensor | None, scales: Mapping[str, float]) -> Row:
    """Compare two records of which at least one kept only its sketch."""
    ref, got = pair.reference, pair.port
    row = replace(row, estimated=True)
    shape = tuple(p.shape) if p is not None else got.shape
    if ref.shape != shape and not reshaped(ref.shape, shape):
        # A sketch fixes the order of the elements: it cannot be brought to another layout, nor repeated.
        other = math.prod(ref.shape) != math.prod(shape) and broadcasts(ref.shape, shape) is None
        return replace(row, diverged=other or ref.role in ENDS)
    if ref.digest and ref.shape == got.shape and got.digest == ref.digest:
        return replace(row, error=0.0, max_abs=0.0, cosine=1.0, sqnr_db=math.inf, bitwise=True)
    left = ref.sketch if ref.sketch is not None else sketch(r) if r is not None else None
    right = sketch(p) if p is not None else got.sketch
    if left is None or right is None or left.shape != right.shape:
        return row
    whole = max(ref.stats.norm if ref.stats else float(torch.linalg.vector_norm(left)), _scale_of(ref, scales))
    whole = whole or (got.stats.norm if got.stats else 0.0)
    error = distance(left, right) / whole if whole > 0 else 0.0
    counts = (ref.stats.nonfinite if ref.stats else 0, got.stats.nonfinite if got.stats else 0)
    if not ref.is_float and ref.digest and got.digest and ref.dtype == got.dtype and p is None:
        error = max(error, UNIT["float64"])  # other bits are other numbers, even where the sums cannot tell
    diverged = counts[0] != counts[1] or error > row.floor or _other_nonfinite(ref, got)
    if (
        diverged
        and ref.role not in ENDS
        and (ref.shape != shape or pair.target is not None)
        and _same_values(ref, got, row.floor)
    ):
        return row  # in another layout
    return replace(
        row,
        error=error,
        nonfinite=counts,
        sqnr_db=-20 * math.log10(error) if error > 0 else math.inf,
        diverged=diverged,
    )


def _other_nonfinite(ref: Record, got: Record) -> bool:
    """Tell whether two records have their infinities and NaNs at other places, or of other classes."""
    a, b = ref.stats, got.stats
    if a is None or b is None or not (a.nonfinite or b.nonfinite):
        return False
    other = (a.nan, a.posinf, a.neginf) != (b.nan, b.posinf, b.neginf)
    return other or bool(a.where and b.where and a.where != b.where)


def worst(r: Tensor, p: Tensor) -> tuple[tuple[int, ...], float, float]:
    """Return the index of the largest difference (a non-finite one counts as the largest) and both values there."""
    wr, wp = _wide(r), _wide(p)
    d = (wp - wr).abs()
    d = torch.where(torch.isfinite(d), d, torch.where((wr == wp) | (wr.isnan() & wp.isnan()), 0.0, math.inf))
    d = torch.where((d == 0) & _differs(r, p), 0.5, d)  # whole numbers that float64 cannot tell apart
    flat = int(torch.argmax(d))
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), d.shape))
    return index, float(wr.flatten()[flat]), float(wp.flatten()[flat])


def _scales(records: Iterable[Record], trace: Trace) -> dict[str, float]:
    """Return, by site, the largest rms value of its floating records."""
    found: dict[str, float] = {}
    for record in records:
        if not record.is_float:
            continue
        if record.stats is not None:
            rms = math.sqrt(record.stats.sumsq / record.stats.count) if record.stats.count else 0.0
        else:
            value = trace.tensor(record.key)
            rms = (
                float(torch.linalg.vector_norm(_wide(value))) / math.sqrt(value.numel())
                if value is not None and value.numel()
                else 0.0
            )
        if math.isfinite(rms):
            found[record.site] = max(found.get(record.site, 0.0), rms)
    return found


def _scale_of(record: Record, scales: Mapping[str, float]) -> float:
    return _SMALL * scales.get(record.site, 0.0) * math.sqrt(math.prod(record.shape))


def _differs(r: Tensor, p: Tensor) -> Tensor:
    """Return where two values are unequal; whole numbers are compared as such."""
    if any(t.is_floating_point() or t.is_complex() for t in (r, p)):
        r, p = _wide(r), _wide(p)
        return (r != p) & ~(r.isnan() & p.isnan())
    return r.detach().cpu().to(torch.int64) != p.detach().cpu().to(torch.int64)


def _wide(value: Tensor) -> Tensor:
    value = value.detach().to("cpu")
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.to(torch.float64)
