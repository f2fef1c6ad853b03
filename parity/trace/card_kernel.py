"""The Triton kernels of `parity.trace.card`: one pass over a tensor where it lies, and the sum of what its programs left."""

from __future__ import annotations

import triton
import triton.language as tl


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


@triton.jit
def _mixed(index):
    """lowbias32 of an index below 2^31: `_weights` without the high half."""
    x = index.to(tl.uint32)
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return (x ^ (x >> 16)).to(tl.int32, bitcast=True)


@triton.jit
def _taken_in(bits, index, sketch, total, squares, low, high, product, added, zeros, KIND: tl.constexpr):
    """Return the sums with one row of finite values more."""
    weight = _mixed(index)
    x = _value(bits, bits, KIND)
    own = bits.to(tl.int32)
    wide = x.to(tl.float64)
    sketch += tl.where(weight < 0, -wide, wide)
    total += wide
    squares += wide * wide
    low, high = tl.minimum(low, x), tl.maximum(high, x)
    product += own.to(tl.int64) * weight.to(tl.int64)
    added += own.to(added.dtype)
    zeros += (x == 0.0).to(tl.int32)
    return sketch, total, squares, low, high, product, added, zeros


@triton.jit
def _quick_rows(
    source, folded, ends, totals, program, first, last, count, n1, n2, n3, s0, s1, s2, s3,
    WIDTH: tl.constexpr, LANES: tl.constexpr, KIND: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """Do what `_rows` does without care, for floats below index 2^31: 32 bits an index, and a mask for the last rows alone.

    Lanes from WIDTH on read the next row's first elements; what they hold is dropped at the end.
    """
    lane = tl.arange(0, LANES)
    sketch = tl.zeros((LANES,), tl.float64)
    total = tl.zeros((LANES,), tl.float64)
    squares = tl.zeros((LANES,), tl.float64)
    low = tl.full((LANES,), float("inf"), tl.float32)
    high = -low
    product = tl.zeros((LANES,), tl.int64)
    if KIND <= 1:
        added = tl.zeros((LANES,), tl.int32)  # of 16 bits each, and fewer than 2^15 rows
    else:
        added = tl.zeros((LANES,), tl.int64)
    zeros = tl.zeros((LANES,), tl.int32)
    whole_rows = (
        count - LANES
    ) // WIDTH + 1  # with all lanes inside; below 1 where there are fewer elements than lanes
    full = tl.maximum(first, tl.minimum(last, whole_rows)).to(tl.int32)
    for row in range(first.to(tl.int32), full):
        index = row * WIDTH + lane
        if AXES == 0:
            bits = tl.load(source + index)
        else:
            bits = tl.load(source + _offset(index.to(tl.int64), n1, n2, n3, s0, s1, s2, s3, AXES))
        sketch, total, squares, low, high, product, added, zeros = _taken_in(
            bits, index, sketch, total, squares, low, high, product, added, zeros, KIND
        )
    for row in range(full, last.to(tl.int32)):
        index = row * WIDTH + lane
        there = index < count
        bits = tl.load(source + _offset(index.to(tl.int64), n1, n2, n3, s0, s1, s2, s3, AXES), mask=there, other=0)
        a, b, c, d, e, f, g, h = _taken_in(bits, index, sketch, total, squares, low, high, product, added, zeros, KIND)
        sketch, total, squares = tl.where(there, a, sketch), tl.where(there, b, total), tl.where(there, c, squares)
        low, high = tl.where(there, d, low), tl.where(there, e, high)
        product, added, zeros = tl.where(there, f, product), tl.where(there, g, added), tl.where(there, h, zeros)
    own = lane < WIDTH
    low, high = tl.where(own, low, float("inf")), tl.where(own, high, -float("inf"))
    total, squares = tl.where(own, total, 0.0), tl.where(own, squares, 0.0)
    product, added, zeros = tl.where(own, product, 0), tl.where(own, added, 0), tl.where(own, zeros, 0)
    tl.store(folded + program * WIDTH + lane, sketch, mask=own)
    tl.store(ends + program * 4, tl.min(low, 0).to(tl.float64))
    tl.store(ends + program * 4 + 1, tl.max(high, 0).to(tl.float64))
    tl.store(ends + program * 4 + 2, tl.sum(total, 0))
    whole = tl.sum(squares, 0)
    tl.store(ends + program * 4 + 3, whole)
    out = totals + program * 8
    tl.store(out, tl.sum(zeros.to(tl.int64), 0))
    tl.store(out + 1, tl.sum(product, 0))
    tl.store(out + 2, tl.sum(added.to(tl.int64), 0))
    for i in tl.static_range(3, 7):
        tl.store(out + i, tl.full((), 0, tl.int64))
    tl.store(out + 7, tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64))
    return whole


@triton.jit(do_not_specialize=["count", "rows", "each", "n1", "n2", "n3", "s0", "s1", "s2", "s3"])
def one_pass(
    source, table, folded, ends, totals, count, rows, each, n1, n2, n3, s0, s1, s2, s3,
    WIDTH: tl.constexpr, LANES: tl.constexpr, KIND: tl.constexpr, NAN: tl.constexpr, AXES: tl.constexpr, QUICK: tl.constexpr,
):  # fmt: skip
    """Leave the partial sums of this program's rows; once more with care where a value is not finite (a NaN shows in the sum of squares)."""
    program = tl.program_id(0).to(tl.int64)
    first = program * each
    last = tl.minimum(first + each, rows)
    if QUICK:
        whole = _quick_rows(
            source,
            folded,
            ends,
            totals,
            program,
            first,
            last,
            count,
            n1,
            n2,
            n3,
            s0,
            s1,
            s2,
            s3,
            WIDTH,
            LANES,
            KIND,
            AXES,
        )
    else:
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
def gather(
    folded, ends, totals, sketch, all_ends, all_totals, programs,
    WIDTH: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Add up what the programs left, CHUNK of them at a time. The last program of this grid takes the numbers, the others a stretch of the sketch each."""
    part = tl.program_id(0)
    lane = part * LANES + tl.arange(0, LANES)
    of = tl.arange(0, CHUNK)
    if part * LANES < WIDTH:
        found = tl.zeros((LANES,), tl.float64)
        for p in range(0, programs, CHUNK):
            there = ((p + of) < programs)[:, None] & (lane < WIDTH)[None, :]
            found += tl.sum(tl.load(folded + (p + of)[:, None] * WIDTH + lane[None, :], mask=there, other=0.0), 0)
        tl.store(sketch + lane, found, mask=lane < WIDTH)
    else:
        four, eight = tl.arange(0, 4), tl.arange(0, 8)
        least = tl.load(ends + four)
        most = least
        summed = tl.zeros((4,), tl.float64)
        counts = tl.zeros((8,), tl.int64)
        earliest = tl.load(totals + eight)
        for p in range(0, programs, CHUNK):
            at = tl.minimum(p + of, programs - 1)[:, None]  # the last one again, where sums leave it out
            there = ((p + of) < programs)[:, None]
            more, others = tl.load(ends + at * 4 + four[None, :]), tl.load(totals + at * 8 + eight[None, :])
            least, most = tl.minimum(least, tl.min(more, 0)), tl.maximum(most, tl.max(more, 0))
            earliest = tl.minimum(earliest, tl.min(others, 0))
            summed += tl.sum(tl.where(there, more, 0.0), 0)
            counts += tl.sum(tl.where(there, others, 0), 0)
        tl.store(all_ends + four, tl.where(four == 0, least, tl.where(four == 1, most, summed)))
        tl.store(all_totals + eight, tl.where(eight == 7, earliest, counts))
