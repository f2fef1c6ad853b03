"""The fingerprint of a tensor: linear, honest about its spread, and different wherever the bits are."""

from __future__ import annotations

import math

import pytest
import torch
from core_models import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.trace import fingerprint as sketches
from parity.trace.fingerprint import BUCKETS, buckets, digest, distance, sketch, stats

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)


@settings(max_examples=20)
@given(shape=SHAPES, a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 99))
def test_the_sketch_is_linear(shape, a, b, seed):
    x, y = noise(*shape, seed=seed).double(), noise(*shape, seed=seed + 100).double()
    both = sketch(a * x + b * y)
    assert torch.allclose(both, a * sketch(x) + b * sketch(y), rtol=1e-12, atol=1e-12)
    assert both.dtype is torch.float64
    assert both.shape == (buckets(shape),)


def test_the_distance_is_estimated_within_its_spread():
    """Relative standard deviation about sqrt(1 / 2K) = 2.2 %, over many pairs; no bias."""
    ratios = []
    for seed in range(60):
        x, y = noise(40, 128, seed=seed), noise(40, 128, seed=seed + 1000)
        ratios.append(distance(sketch(x), sketch(y)) / float((x - y).double().norm()))
    spread = torch.tensor(ratios).std().item()
    expected = math.sqrt(1 / (2 * BUCKETS[0]))
    assert 0.6 * expected < spread < 1.5 * expected
    assert abs(sum(ratios) / len(ratios) - 1) < 4 * expected / math.sqrt(len(ratios))


def structured(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Errors of real bugs, which are anything but independent from element to element."""
    d = torch.zeros(shape)
    rows, columns = shape
    if kind == "bias in every row":
        d += noise(columns, seed=1)
    elif kind == "one channel":
        d[:, 3] = noise(rows, seed=1)
    elif kind == "one row":
        d[5] = noise(columns, seed=1)
    elif kind == "constant":
        d += 0.1
    elif kind == "alternating":
        d += 0.1 * (1 - 2 * (torch.arange(rows * columns) % 2)).reshape(shape)
    else:
        d += noise(rows, 1, seed=1)
    return d


@pytest.mark.parametrize("columns", [64, 1021, 2 * 1021, 1019])
@pytest.mark.parametrize(
    "kind", ["bias in every row", "one channel", "one row", "constant", "alternating", "offset of a row"]
)
def test_structured_errors_are_estimated_as_well(kind, columns):
    x = noise(96, columns, seed=2)
    d = structured(kind, (96, columns))
    estimate, true = distance(sketch(x), sketch(x + d)), float(d.double().norm())
    least_spread = math.sqrt(1 / (2 * min(BUCKETS[0], int((d != 0).sum()))))
    assert estimate == pytest.approx(true, rel=6 * max(least_spread, math.sqrt(1 / 2 / BUCKETS[0])))


@given(last=st.integers(1, 5000), lead=st.integers(1, 3))
def test_buckets_are_a_prime_that_does_not_divide_the_last_axis(last, lead):
    k = buckets((lead, last))
    assert k in BUCKETS
    assert last % k != 0
    assert all(k % d for d in range(2, 32))


def test_one_changed_element_changes_everything():
    x = noise(7, 11)
    for i in (0, 38, 76):
        y = x.clone()
        y.view(-1)[i] = torch.nextafter(y.view(-1)[i], torch.tensor(math.inf))
        assert digest(x) != digest(y)
        step = float((y.double() - x.double()).norm())
        assert distance(sketch(x), sketch(y)) == pytest.approx(step, rel=1e-6)


def test_fingerprints_do_not_depend_on_the_size_of_the_blocks(monkeypatch):
    """A card takes larger blocks than a processor: sketch and hash are the same."""
    monkeypatch.setattr(sketches, "compiled_pass", lambda: None)
    x = noise(1100, 2000)  # more than 2^20 elements
    small = sketch(x), digest(x), digest(x.bfloat16())
    monkeypatch.setitem(sketches._BLOCK, "cpu", 1 << 22)
    sketches._kept_hashes.cache_clear()
    assert torch.allclose(sketch(x), small[0], rtol=1e-9, atol=1e-9)
    assert (digest(x), digest(x.bfloat16())) == small[1:]
    monkeypatch.undo()
    sketches._kept_hashes.cache_clear()


def test_tensors_of_more_than_one_block(monkeypatch):
    """Blocks are how it is computed, not what: the same sums, at every place, and places count beyond the first block."""
    monkeypatch.setattr(sketches, "compiled_pass", lambda: None)
    monkeypatch.setitem(sketches._BLOCK, "cpu", 1 << 9)
    sketches._kept_hashes.cache_clear()
    try:
        x = noise(3, 1500)
        small = sketch(x), digest(x)
        assert digest(x.clone()) == small[1]
        y = x.clone()
        y[2, 1499] += 1
        assert digest(y) != small[1]
        assert distance(sketch(y), small[0]) == pytest.approx(1.0, rel=1e-5)
    finally:
        monkeypatch.undo()
        sketches._kept_hashes.cache_clear()
    assert torch.allclose(sketch(x), small[0], rtol=0, atol=1e-9)


KINDS = {
    "noise": lambda x: x,
    "positive": torch.relu,
    "negative": lambda x: -x.abs() - 0.1,
    "tiny": lambda x: x * 1e-7,  # float16 keeps it without an exponent
    "not finite": lambda x: torch.where(x > 1, torch.where(x > 2, math.nan, -math.inf), x),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_the_compiled_pass_has_the_digits_of_the_plain_one(monkeypatch, dtype, kind):
    """The hash, extremes and counts exactly; sums up to the order of summation. Also past the places of a block, strided and as a transposed view."""
    pytest.importorskip("numba")
    whole = KINDS[kind](noise((1 << 20) + 4097 if kind == "noise" else 40_000))
    values = [whole, whole[: 3 * 1024].reshape(3, 1024), whole[: 5 * 1021].reshape(5, 1021).T, whole[:9000:2]]
    values = [(torch.complex(v, -v) if dtype.is_complex else v).to(dtype) for v in values]
    values += [values[0][: 2 * 4096].conj()] if dtype.is_complex else []
    assert sketches.compiled_pass() is not None
    compiled = [sketches.fingerprint(v) for v in values]
    monkeypatch.setattr(sketches, "compiled_pass", lambda: None)
    for value, one in zip(values, compiled, strict=True):
        plain = sketches.fingerprint(value)
        assert one.digest == plain.digest
        assert_same_stats(one.stats, plain.stats, rel=1e-9)
        assert torch.allclose(one.sketch, plain.sketch, rtol=1e-11, atol=1e-11 * plain.stats.norm)


def test_a_tensor_larger_than_the_real_block():
    x = torch.zeros((1 << 20) + 77, dtype=torch.float16)
    x[(1 << 20) + 5] = 2.0
    moved = torch.zeros_like(x)
    moved[5] = 2.0
    assert float(sketch(x).norm()) == 2.0
    assert digest(x) != digest(moved)
    assert distance(sketch(x), sketch(moved)) in (pytest.approx(math.sqrt(8)), 0.0, 4.0)
    assert stats(x).zeros == x.numel() - 1


def test_shards_add_up():
    """Linear: parts at their own places, zeros elsewhere, add up to the whole."""
    x = noise(6, 10, 8)
    parts = []
    for piece in torch.arange(10).chunk(3):
        part = torch.zeros_like(x)
        part[:, piece] = x[:, piece]
        parts.append(sketch(part))
    assert torch.allclose(torch.stack(parts).sum(0), sketch(x), atol=1e-12)


@settings(max_examples=25)
@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), seed=st.integers(0, 9))
def test_equal_values_have_equal_fingerprints_however_they_lie(shape, dtype, seed):
    x = noise(*shape, seed=seed).to(dtype)
    strided = torch.empty((*shape, 2), dtype=dtype)[..., 0].copy_(x)
    flipped = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) if x.dim() > 1 else x
    for other in (x.clone(), strided, flipped):
        assert digest(other) == digest(x)
        assert torch.equal(sketch(other), sketch(x))
        assert_same_stats(stats(other), stats(x))


def assert_same_stats(one, other, rel=1e-12) -> None:
    """Sums may be added up in another order; everything else is exact."""
    for name, value in vars(one).items():
        expected = getattr(other, name)
        assert value == (pytest.approx(expected, rel=rel, abs=1e-12) if "sum" in name else expected), name


def test_order_type_and_shape_count():
    x = noise(4, 6)
    assert digest(x) != digest(x.flip(0))
    assert digest(x) != digest(x.reshape(6, 4))
    assert digest(x) != digest(x.double())
    assert digest(torch.zeros(3)) != digest(torch.zeros(4))
    assert digest(torch.zeros(2, dtype=torch.int32)) != digest(torch.zeros(2))
    assert len(digest(x)) == 32
    assert int(digest(x), 16) >= 0


def test_the_fingerprint_is_a_fixed_function():
    """Two machines, two days: these values may never change within one format version."""
    assert digest(torch.arange(6, dtype=torch.float32).reshape(2, 3)) == "0871c529b15e4524a8cac9f559c9c15f"
    assert digest(torch.tensor([True, False])) == "e3cd2e9c3a6801212468bd32ccfc289d"
    count = 2 * BUCKETS[0] + 5
    signs = [-1.0 if lowbias32(i) >= 1 << 31 else 1.0 for i in range(count)]
    expected = torch.zeros(BUCKETS[0], dtype=torch.float64)
    for i, sign in enumerate(signs):
        expected[i % BUCKETS[0]] += sign * (i + 1)
    assert torch.equal(sketch(torch.arange(1, count + 1)), expected)
    assert abs(sum(signs)) < 5 * math.sqrt(count)


def lowbias32(x: int) -> int:
    """The integer hash of the signs, written again from its publication (Wellons 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_non_finite_values_are_counted_not_summed(dtype):
    x = noise(4, 5).to(dtype)
    clean = x.clone()
    x[1, 2], x[3, 0], x[3, 1] = math.nan, math.inf, -math.inf
    clean[1, 2] = clean[3, 0] = clean[3, 1] = 0
    found = stats(x)
    assert (found.nan, found.posinf, found.neginf, found.nonfinite) == (1, 1, 1, 3)
    assert found.first_nonfinite == 7
    good = clean.double()[torch.isfinite(x)]
    assert found.sum == pytest.approx(float(good.sum()))
    assert (found.min, found.max) == (float(good.min()), float(good.max()))
    assert torch.equal(sketch(x), sketch(clean))
    assert digest(x) != digest(clean)


def test_every_nan_is_the_same_nan_but_not_a_number():
    bits = torch.tensor([0x7FC00000, 0x7FC00001, -0x400000], dtype=torch.int32).view(torch.float32)
    assert bits.isnan().all()
    assert len({digest(bits[i : i + 1]) for i in range(3)}) == 1
    assert digest(bits[:1]) != digest(torch.tensor([math.inf]))
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))  # exact: bits, not values


def test_finite_values_whose_squares_overflow():
    x = torch.tensor([1e200, -3e200, 1.0], dtype=torch.float64)
    found = stats(x)
    assert found.nonfinite == 0
    assert found.first_nonfinite is None
    assert (found.min, found.max) == (-3e200, 1e200)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(-5, 7, dtype=torch.int64).reshape(3, 4),
        torch.arange(12, dtype=torch.int32),
        torch.arange(12, dtype=torch.uint8),
        torch.tensor([[True, False], [False, True]]),
        torch.complex(noise(3, 4), noise(3, 4, seed=1)),
        noise(3, 4).to(torch.float8_e4m3fn),
        torch.complex(noise(3, 4), noise(3, 4, seed=1)).conj(),
    ],
    ids=["int64", "int32", "uint8", "bool", "complex", "float8", "conjugate view"],
)
def test_every_dtype_has_a_fingerprint(value):
    found = stats(value)
    real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    wide = real.double()
    assert found.count == real.numel()
    assert found.sum == pytest.approx(float(wide.sum()))
    assert found.sumsq == pytest.approx(float(wide.square().sum()))
    assert float(sketch(value).norm()) > 0
    other = value.clone()
    other.view(-1)[1] = value.reshape(-1)[0] if value.reshape(-1)[1] != value.reshape(-1)[0] else value.reshape(-1)[-1]
    assert digest(other) != digest(value)


def test_large_integers_are_hashed_exactly():
    """float64 cannot tell 2^60 from 2^60 + 1; the hash can."""
    x = torch.tensor([2**60, 7])
    assert digest(x) != digest(torch.tensor([2**60 + 1, 7]))


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_empty_and_scalar_tensors(shape):
    x = torch.ones(shape)
    assert stats(x).count == x.numel()
    assert float(sketch(x).abs().sum()) == x.numel()
    assert digest(x) == digest(torch.ones(shape))
