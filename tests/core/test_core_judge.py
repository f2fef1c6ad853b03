"""Numbers and floors: legitimate noise passes, every kind of divergence is seen, and nothing passes silently."""

from __future__ import annotations

import json
import math

import pytest
import torch
from core_models import noise
from hypothesis import given, settings
from hypothesis import strategies as st

import parity
from parity.align.traces import align
from parity.compare.floors import FIXED, UNIT, UNITS, Floors, coarser, measured
from parity.compare.measure import measure, own_errors, relative_l2, worst
from parity.compare.verdict import judge, verdict_of
from parity.errors import CaseError, TraceError
from parity.locate.first import first_divergence
from parity.report.saved import read_results
from parity.result import EXIT_STATUS, Divergence, Result, format_key, parse_key
from parity.trace import Manifest, MemorySource, Record, Trace
from parity.trace.fingerprint import digest, sketch, stats
from parity.trace.names import parse_names


def trace(values: dict[str, torch.Tensor], *, full: bool = True, digests: bool = False, **manifest) -> Trace:
    """Build a trace from `site@coords` -> tensor, in this order."""
    made = Trace(manifest=Manifest(**manifest))
    for i, (key, value) in enumerate(values.items()):
        site, coords = parse_key(key)
        extra = {"stats": stats(value), "digest": digest(value), "sketch": sketch(value)} if digests or not full else {}
        kind = "frame" if site.startswith("frame") else "activation"
        record = Record(site, coords, kind, i, tuple(value.shape), str(value.dtype).removeprefix("torch."), **extra)
        made.add(record, value if full else None)
    return made


def outcome(reference: dict[str, torch.Tensor], port: dict[str, torch.Tensor], **options) -> Result:
    options = {"by_value": False, "allow_unaligned": 0.0} | options
    return parity.compare(trace(reference), trace(port), **options)


BASE = {"a": noise(3, 4), "b@step=0": noise(3, 4, seed=1), "b@step=1": noise(3, 4, seed=2), "c": noise(5, seed=3)}


# -- matching under legitimate noise ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_rounding_noise_is_no_divergence(dtype, scale, seed):
    """A few units of roundoff per element pass the fixed tolerance of each dtype; fifty times the tolerance does not."""
    name = str(dtype).removeprefix("torch.")
    r = (scale * noise(16, 8, seed=seed)).to(dtype)
    p = (r.double() * (1 + 2 * UNIT[name] * noise(16, 8, seed=seed + 1).double())).to(dtype)
    assert outcome({"x": r}, {"x": p}).verdict == "match"
    far = (r.double() * (1 + 50 * FIXED[name])).to(dtype)
    assert outcome({"x": r}, {"x": far}).verdict == "diverged"


def test_equal_traces_are_bitwise_equal():
    result = outcome(BASE, BASE)
    assert result.verdict == "match"
    assert result.exit_status == 0
    assert all(row.bitwise and row.error == 0 for row in result.rows)
    assert (result.coverage.compared, result.coverage.reference, result.coverage.port) == (4, 4, 4)


def test_the_numbers_of_a_row():
    r, p = torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.5, 0.0])
    row = outcome({"x": r}, {"x": p}).rows[0]
    assert row.error == pytest.approx(0.5 / 5)
    assert row.max_abs == 0.5
    assert row.cosine == pytest.approx(25 / (5 * math.sqrt(25.25)))
    assert row.sqnr_db == pytest.approx(20)
    assert row.over == 0.25
    assert row.ulp == pytest.approx(0.5 / (2.5 * 2**-23))
    assert relative_l2(p, r) == pytest.approx(0.1)
    assert relative_l2(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_l2(torch.ones(3), torch.zeros(3)) == 1


# -- divergences of each kind -----------------------------------------------------------------------------------------


def changed(**values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    names = {"b0": "b@step=0", "b1": "b@step=1"}
    new = dict(BASE)
    for name, value in values.items():
        key = names.get(name, name)
        if value is None:
            new.pop(key)
        else:
            new[key] = value
    return new


def test_a_value_with_the_worst_element():
    other = BASE["b@step=1"].clone()
    other[2, 1] += 0.25
    first = outcome(BASE, changed(b1=other)).first
    assert (first.key, first.metric, first.index) == ("b@step=1", "rel_l2", (2, 1))
    assert first.port_value - first.reference_value == pytest.approx(0.25)
    assert first.error > first.floor == FIXED["float32"]


def test_another_shape():
    result = outcome(BASE, changed(c=noise(6)))
    assert (result.first.site, result.first.metric, result.first.error) == ("c", "shape", math.inf)
    assert result.first.detail == "shape [5] (reference), [6] (port)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite(bad):
    other = BASE["a"].clone()
    other[1, 1] = bad
    first = outcome(BASE, changed(a=other)).first
    assert (first.site, first.metric, first.index) == ("a", "nonfinite", (1, 1))
    assert "0 non-finite values (reference), 1 (port)" in first.detail
    # The same value at the same place on both sides is no divergence; at another place it is.
    both = {"a": other}
    assert outcome(both, {"a": other.clone()}).verdict == "match"
    moved = other.roll(1, 0)
    moved[1, 1] = other[0, 1]
    assert outcome(both, {"a": other.roll(1, 0)}).verdict == "diverged"


def test_infinities_of_other_sign_differ_and_masks_full_of_them_do_not():
    mask = torch.full((4, 4), -math.inf).triu(1)
    assert outcome({"mask": mask}, {"mask": mask.clone()}).verdict == "match"
    assert outcome({"mask": mask}, {"mask": -mask}).verdict == "diverged"
    other = outcome({"mask": mask}, {"mask": mask.masked_fill(mask < 0, -1e9)})  # hides the same keys
    assert other.verdict == "match"
    assert any("the same mask in another form" in note for note in other.notes)


def test_missing_and_extra_calls():
    result = outcome(BASE, changed(b1=None))
    assert (result.verdict, result.first.key, result.first.metric) == ("diverged", "b@step=1", "missing")
    result = outcome(changed(b1=None), BASE)
    assert (result.verdict, result.first.key, result.first.metric) == ("diverged", "b@step=1", "extra")
    assert result.first.order == 1  # in the place of the reference's record before it


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_compare_exactly(dtype):
    r = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    p = r.clone()
    assert outcome({"i": r}, {"i": p}).verdict == "match"
    p[3] = 1
    first = outcome({"i": r}, {"i": p}, rtol=1e9).first
    assert (first.metric, first.index, first.floor) == ("mismatches", (3,), 0.0)
    assert first.error == pytest.approx(0.2)


@pytest.mark.parametrize("full", [True, False])
def test_large_integers_compare_exactly(full):
    """float64 cannot tell these apart."""
    r = torch.tensor([3, 2**60])
    p = r + torch.tensor([0, 1])
    result = parity.compare(trace({"i": r}, full=full), trace({"i": p}, full=full))
    assert result.verdict == "diverged"
    assert result.first.index == ((1,) if full else None)
    assert parity.compare(trace({"i": r}, full=full), trace({"i": r.clone()}, full=full)).verdict == "match"


def test_a_byte_of_a_picture_may_fall_to_the_other_side_of_a_tie():
    picture = torch.randint(0, 255, (2, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tie, far, many, other = (picture.clone() for _ in range(4))
    tie[0, 0, 3, 4] += 1
    far[0, 0, 3, 4] ^= 2
    many[:, :, 0] += 1
    other[0, 0, 3, 4] += 1
    assert outcome({"frame": picture}, {"frame": tie}).verdict == "match"
    assert outcome({"frame": picture}, {"frame": far}).verdict == "diverged"  # two levels are no rounding
    assert outcome({"frame": picture}, {"frame": many}).verdict == "diverged"
    assert outcome({"ids": picture}, {"ids": other}).verdict == "diverged"  # no picture


def test_integers_of_another_type_but_equal_value_match():
    r = torch.arange(5)
    assert outcome({"i": r}, {"i": r.int()}).verdict == "match"


def test_complex_values():
    r = torch.complex(noise(4), noise(4, seed=1))
    assert outcome({"z": r}, {"z": r.clone()}).verdict == "match"
    assert outcome({"z": r}, {"z": r.conj()}).verdict == "diverged"
    assert outcome({"z": r}, {"z": r.conj().resolve_conj()}).verdict == "diverged"


def test_empty_tensors_agree():
    assert outcome({"e": torch.ones(0, 3), "x": BASE["a"]}, {"e": torch.ones(0, 3), "x": BASE["a"]}).verdict == "match"


def test_a_zero_reference_is_measured_on_the_port():
    assert outcome({"x": torch.zeros(4)}, {"x": torch.zeros(4)}).verdict == "match"
    result = outcome({"x": torch.zeros(4)}, {"x": torch.full((4,), 1e-12)})
    assert result.verdict == "diverged"
    assert result.first.error == pytest.approx(1.0)
    assert outcome({"x": torch.zeros(4)}, {"x": torch.full((4,), 1e-12)}, atol=1e-9).verdict == "match"


def test_a_record_far_below_its_site_is_judged_on_the_sites_scale():
    """A velocity that happens to be almost zero at one step may not be asked for its own last digits."""
    r = {"v@step=0": noise(64), "v@step=1": 1e-9 * noise(64, seed=1)}
    p = {"v@step=0": r["v@step=0"], "v@step=1": 1e-9 * noise(64, seed=2)}
    assert outcome(r, p).verdict == "match"
    alone = {k: v for k, v in r.items() if k == "v@step=1"}
    assert outcome(alone, {"v@step=1": p["v@step=1"]}).verdict == "diverged"
    p["v@step=1"] = r["v@step=1"] + 1e-3
    assert outcome(r, p).first.key == "v@step=1"


# -- order, alignment, verdicts ---------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(order=st.permutations(range(6)), bad=st.sets(st.integers(0, 5), min_size=1))
def test_the_first_divergence_is_first_in_the_references_order(order, bad):
    values = {f"s{i}": noise(4, seed=i) for i in order}
    port = {f"s{i}": noise(4, seed=i) + (i in bad) for i in reversed(range(6))}
    result = outcome(values, port)
    assert result.first.site == next(f"s{i}" for i in order if i in bad)
    assert [d.site for d in result.divergences] == [f"s{i}" for i in order if i in bad]


def test_nothing_in_common_is_incomparable():
    result = outcome({"a": noise(8)}, {"z": noise(8, seed=5)})
    assert result.verdict == "incomparable"
    assert result.exit_status == 1
    assert result.coverage.compared == 0
    assert (result.coverage.unaligned_reference, result.coverage.unaligned_port) == (("a",), ("z",))


def test_lone_sites_above_the_allowance_are_no_match():
    few = {k: v for k, v in BASE.items() if k != "c"}
    assert outcome(BASE, few).verdict == "incomplete"
    assert outcome(BASE, few, allow_unaligned=0.5).verdict == "match"
    assert outcome(BASE, {"a": BASE["a"]}, allow_unaligned=0.3).verdict == "incomplete"
    assert outcome(few, BASE).verdict == "incomplete"
    assert outcome(BASE, few).exit_status == 1


@pytest.mark.parametrize("side", ["reference", "port"])
def test_an_incomplete_trace_is_no_match(side):
    whole, cut = trace(BASE), trace(BASE, complete=False)
    pair = (cut, whole) if side == "reference" else (whole, cut)
    result = parity.compare(*pair)
    assert result.verdict == "incomplete"
    assert any(f"the {side} trace is incomplete: its run was cut off after 4 records" in n for n in result.notes)
    other = trace(changed(a=noise(3, 4, seed=9)), complete=False)
    assert parity.compare(whole, other).verdict == "diverged"


def test_an_empty_trace_is_an_error():
    with pytest.raises(TraceError, match="the port trace holds no record"):
        parity.compare(trace(BASE), trace({}))


def test_exit_statuses_cover_every_verdict():
    assert EXIT_STATUS == {"match": 0, "diverged": 1, "incomparable": 1, "incomplete": 1}
    coverage = outcome(BASE, BASE).coverage
    divergence = Divergence("a", {}, "activation", "rel_l2", 1.0, 0.0)
    assert verdict_of([], coverage, True) == "match"
    assert verdict_of([divergence], coverage, False) == "diverged"
    assert verdict_of([], coverage, False) == "incomplete"


def test_maps_allowances_and_reasons():
    names = parse_names(
        [{"port": "q", "reference": "a", "layout": "r c -> c r"}, {"port": "drop", "ignore": "inactive"}]
    )
    port = trace({"q": BASE["a"].t().contiguous(), "drop": noise(2), "c": BASE["c"]})
    found = align(trace({"a": BASE["a"], "c": BASE["c"], "alone": noise(3)}), port, names, {"al.*": "by design"})
    assert [(p.reference.site, p.how) for p in found.pairs] == [("a", "map"), ("c", "name")]
    assert torch.equal(found.pairs[0].port_tensor(port), BASE["a"])
    assert (found.alone_reference, found.alone_port, dict(found.allowed)) == ((), (), {"alone": "by design"})
    with pytest.raises(CaseError, match="no regular expression"):
        align(trace(BASE), trace({"z": noise(2)}), None, {"(": "x"})


def test_what_names_do_not_pair_values_do():
    """Other names, another layout, in other blocks too: found, and a fault in one of them is seen in its place."""
    r = {f"blocks.{i}.{n}": noise(4, 6, seed=10 * i + j) for i in range(3) for j, n in enumerate(("attn", "mlp"))}
    p = {k.replace("attn", "self").replace("blocks", "layers"): v.t().contiguous() for k, v in r.items()}
    result = outcome(r, p, by_value=True)
    assert (result.verdict, result.coverage.compared) == ("match", 6)
    p["layers.1.mlp"] = p["layers.1.mlp"] * 1.5
    result = outcome(r, p, by_value=True)
    assert (result.verdict, result.first.site, result.coverage.compared) == ("diverged", "blocks.1.mlp", 6)
    assert any("value" in note for note in result.notes)


# -- sketches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [(True, False), (False, True), (False, False)])
def test_sketches_judge_as_full_tensors_do(full):
    r, p = {"x": noise(40, 30), "y": noise(50)}, {"x": noise(40, 30) + 0.01 * noise(40, 30, seed=4), "y": noise(50)}
    left, right = trace(r, full=full[0], digests=True), trace(p, full=full[1], digests=True)
    result = parity.compare(left, right)
    exact = outcome(r, p).rows[0].error
    assert result.verdict == "diverged"
    assert [row.diverged for row in result.rows] == [True, False]
    assert result.rows[0].error == pytest.approx(exact, rel=0.15)
    assert all(row.estimated for row in result.rows)
    assert result.rows[1].bitwise


def test_sketches_of_another_shape_of_integers_and_of_other_non_finite_counts():
    def verdict(r: torch.Tensor, p: torch.Tensor) -> Result:
        return parity.compare(trace({"x": r}, full=False), trace({"x": p}, full=False), by_value=False)

    assert verdict(noise(4, 5), noise(4, 6)).first.metric == "shape"
    assert verdict(noise(4, 5), noise(5, 4)).verdict == "incomparable"  # another layout: not measured, no bug either
    assert verdict(torch.arange(5), torch.arange(5)).verdict == "match"
    assert verdict(torch.arange(5), torch.arange(5).roll(1)).verdict == "diverged"
    bad = noise(4, 5)
    bad[0, 0] = math.nan
    assert verdict(noise(4, 5), bad).first.metric == "nonfinite"


def test_the_same_values_in_another_order_are_named_so_from_sketches():
    x = noise(6, 8)
    result = parity.compare(trace({"x": x}, full=False), trace({"x": x.flip(0)}, full=False), by_value=False)
    assert result.first.detail.startswith("the same values in another order")
    other = parity.compare(trace({"x": x}, full=False), trace({"x": 2 * x}, full=False), by_value=False)
    assert other.first.detail == "estimated from sketches"


def test_a_pair_that_cannot_be_measured_is_not_silently_equal():
    """A record without tensor, hash and sketch says nothing: that is no match."""
    empty = Trace([Record("x", {}, "activation", 0, (4,), "float32")], Manifest(), MemorySource())
    result = parity.compare(trace({"x": noise(4)}), empty)
    assert (result.verdict, result.coverage.compared, result.coverage.unaligned_reference) == (
        "incomparable",
        0,
        ("x",),
    )


def test_a_sketch_cannot_be_brought_to_another_layout_and_that_is_said():
    """A sketch fixes the order of the elements: a layout that is applied afterwards needs the tensor."""
    names = parse_names([{"port": "q", "reference": "x", "layout": "a b -> b a"}])
    r, p = {"x": noise(4, 5), "y": noise(6)}, {"q": 3 * noise(5, 4), "y": noise(6)}
    result = parity.compare(trace(r, full=False), trace(p, full=False), names=names, allow_unaligned=0.0)
    assert (result.verdict, result.coverage.compared) == ("incomplete", 1)
    assert any("1 records could not be measured" in note and "x" in note for note in result.notes)
    p = {"q": noise(4, 5).t().contiguous(), "y": noise(6)}
    kept = parity.compare(trace(r, full=False), trace(p), names=names, allow_unaligned=0.0)
    assert (kept.verdict, kept.coverage.compared) == ("match", 2)


# -- floors -----------------------------------------------------------------------------------------------------------


def pair(key: str = "x", dtypes: tuple[str, str] = ("float32", "float32"), kind: str = "activation"):
    site, coords = parse_key(key)
    left, right = (Record(site, coords, kind, 0, (4,), d) for d in dtypes)
    made = align(Trace([left]), Trace([right]))
    return made.pairs[0]


def test_floors_are_measured_pooled_and_never_below_a_few_roundings():
    records = {k: pair(k).reference for k in ("x@step=0", "x@step=1", "y")}
    floors = measured({"x@step=0": 1e-5, "x@step=1": 3e-5, "y": 0.0}, records)
    assert floors.of(pair("x@step=0")) == pytest.approx(4 * 3e-5)
    assert floors.of(pair("y")) == UNITS["float32"] * UNIT["float32"]
    assert floors.of(pair("y", ("float32", "bfloat16"))) == UNITS["bfloat16"] * UNIT["bfloat16"]
    assert floors.of(pair("y", kind="frame")) > floors.of(pair("y"))
    assert measured({"y": math.inf, "x@step=0": math.nan}, records).of(pair("y")) == floors.of(pair("y"))
    assert measured({"y": 1e-9}, records, least=0.5).of(pair("y")) == 0.5


def test_fixed_floors_by_dtype_and_by_hand():
    assert Floors().of(pair()) == FIXED["float32"]
    assert Floors().of(pair(dtypes=("float32", "bfloat16"))) == FIXED["bfloat16"]
    assert Floors(fixed=0.5).of(pair()) == 0.5
    assert Floors(fixed=0.0).of(pair()) == 0.0
    assert coarser("float16", "bfloat16") == "bfloat16"
    assert coarser("float8_e4m3fn", "bfloat16") == "float8_e4m3fn"
    assert (
        FIXED["float64"]
        < FIXED["float32"]
        < FIXED["float16"]
        < FIXED["bfloat16"]
        < Floors().of(pair(dtypes=("float8_e5m2",) * 2))
    )


def test_the_references_own_error_is_the_ground_of_the_floor():
    """Against a higher-precision run; shapes that differ, integers and non-finite elements are left out."""
    x = noise(200).double() * (1 + 1e-7 * noise(200, seed=1).double())
    r = {"x": x.float(), "i": torch.arange(3), "s": noise(4), "n": torch.tensor([1.0, math.nan])}
    h = {"x": x, "i": torch.arange(3), "s": noise(5).double(), "n": torch.tensor([1.0, math.nan], dtype=torch.float64)}
    errors = own_errors(trace(r), trace(h))
    assert set(errors) == {"x", "n"}
    assert 0.1 * 2**-24 < errors["x"] < 2**-24
    assert errors["n"] == 0


def test_a_measured_floor_lets_the_references_error_pass_and_ten_times_it_not():
    r, h = trace({"x": noise(500).bfloat16()}), trace({"x": noise(500).double()})
    floors = measured(own_errors(r, h), {x.key: x for x in r})
    near = trace({"x": (noise(500).double() * (1 + 2**-9)).bfloat16()})
    far = trace({"x": (noise(500).double() * 1.04).bfloat16()})
    for port, expected in ((near, False), (far, True)):
        alignment = align(r, port)
        rows = measure(alignment.pairs, r, port, floors)
        assert [row.diverged for row in rows] == [expected]
        assert bool(judge(rows, alignment, r, port)) is expected
        assert rows[0].precise == pytest.approx(2**-9, rel=0.5)


def test_worst_element_of_values_and_of_infinities():
    r = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    assert worst(r, r + torch.tensor([[0.0, 0.5], [-0.25, 0.0]])) == ((0, 1), 2.0, 2.5)
    assert worst(r, torch.tensor([[1.0, 9.0], [math.nan, math.inf]]))[0] == (1, 0)


def test_first_divergence_prefers_the_reference_record_in_one_place():
    extra = Divergence("e", {}, "activation", "extra", 1.0, 0.0, order=3)
    value = Divergence("v", {}, "activation", "rel_l2", 1.0, 0.0, order=3)
    assert first_divergence([extra, value]) is value
    assert first_divergence([]) is None


# -- results ----------------------------------------------------------------------------------------------------------


def test_a_result_comes_back_from_json(tmp_path):
    bad = BASE["a"].clone()
    bad[0, 0] = math.nan
    result = outcome(BASE, changed(a=bad, c=noise(6), b0=BASE["b@step=0"] * 1.5))
    path = tmp_path / "r.json"
    result.write_json(path)
    text = path.read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (again,) = read_results([path])
    assert again.verdict == result.verdict
    assert repr(again.first) == repr(result.first)  # nan is not equal to itself
    assert math.isnan(again.first.port_value)
    assert again.culprit == result.culprit
    assert again.coverage == result.coverage
    assert repr(again.divergences) == repr(result.divergences)
    assert [math.isnan(r.isolated) for r in again.rows] == [True] * 4
    assert [(r.key, r.floor, r.shape, r.dtype) for r in again.rows] == [
        (r.key, r.floor, r.shape, r.dtype) for r in result.rows
    ]
    assert {d.error for d in again.divergences if d.metric == "shape"} == {math.inf}
    assert again.to_json() == result.to_json()
    assert format_key(again.first.site, again.first.coords) == again.first.key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[1]",
        "5",
        '"x"',
        "{}",
        '{"results": 5}',
        '{"results": [5]}',
        '{"verdict": "match"}',
        '{"verdict": 1, "coverage": 5}',
    ],
)
def test_an_unreadable_result_is_one_line(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"cannot read the result .*r\.json") as caught:
        read_results([path])
    assert "\n" not in str(caught.value)


def test_the_bias_of_a_mask_is_not_drowned_by_what_the_mask_hides_with():
    bias, hidden = noise(4, 6), torch.zeros(4, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    value = bias.masked_fill(hidden, torch.finfo(torch.float32).min)
    assert outcome({"x": value}, {"x": value}).verdict == "match"
    found = outcome({"x": value}, {"x": torch.zeros(4, 6).masked_fill(hidden, torch.finfo(torch.float32).min)}).first
    assert found is not None
    assert found.error == pytest.approx(1.0)
