"""Precision hypotheses: rounding, overflow, NaN and its producer, clamps, bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.evidence import Evidence
from parity.diagnose.precision import HYPOTHESES

X = normal(64, 256, seed=1)
LEVELS = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 255


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float32, "float32")]
)
@pytest.mark.parametrize("side", ["port", "reference"])
def test_one_rounding_is_named(dtype: torch.dtype, name: str, side: str) -> None:
    low = X.to(dtype).double()
    ev = Evidence(X, low) if side == "port" else Evidence(low, X)
    found, class_id, explanation = top(ev, HYPOTHESES)
    assert (found, class_id) == ("rounded", "N4")
    assert (explanation.parameters["dtype"], explanation.parameters["side"]) == (name, side)
    assert explanation.residual == 0


@pytest.mark.parametrize(("kind", "class_id"), [("weight", "W11"), ("rope", "P6"), ("activation", "N4")])
def test_the_class_of_a_rounding_follows_the_kind(kind: str, class_id: str) -> None:
    assert top(Evidence(X, X.bfloat16().double(), kind=kind), HYPOTHESES)[1] == class_id


def test_a_computation_in_bfloat16_is_named_with_less_certainty() -> None:
    w = normal(256, 256, seed=3) / 16
    port = (X.bfloat16() @ w.bfloat16()).double()
    _, class_id, explanation = top(Evidence(X @ w, port), HYPOTHESES)
    assert class_id == "N4"
    assert explanation.confidence < 0.85


def test_two_bfloat16_results_are_not_a_rounding() -> None:
    port = (X + 2e-3 * normal(64, 256, seed=4)).bfloat16()
    assert named(Evidence(X.bfloat16(), port), HYPOTHESES) == {}


def test_a_cast_among_the_operations() -> None:
    low = X.bfloat16()
    cast = Op("_to_copy", (X,), (low,), {"dtype": torch.bfloat16}, "model.py:12", "x = x.bfloat16()")
    w = normal(256, 64, seed=5) / 16
    ev = Evidence(X @ w, low.double() @ w, port_ops=(cast,))
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("hidden_cast", "N4")
    assert explanation.parameters["source"] == "model.py:12"
    both = Evidence(X @ w, low.double() @ w, port_ops=(cast,), ref_ops=(cast,))
    assert named(both, HYPOTHESES) == {}
    harmless = Op("_to_copy", (low.double(),), (low,), {"dtype": torch.bfloat16})
    assert named(Evidence(X @ w, low.double() @ w, port_ops=(harmless,)), HYPOTHESES) == {}


def test_overflow_of_float16() -> None:
    large = 3e4 * X
    name, class_id, explanation = top(Evidence(large, large.half()), HYPOTHESES)
    assert (name, class_id) == ("overflow", "Q1")
    assert explanation.parameters["largest"] > 65504
    saturated = Evidence(large, large.clamp(-65504, 65504))
    assert top(saturated, HYPOTHESES)[1] == "Q1"


def _ev(op: Op) -> Evidence:
    good = normal(*op.outputs[0].shape, seed=8)
    return Evidence(good, op.outputs[0], port_ops=(Op("view", (good,), (good,)), op))


def test_the_operation_that_breaks_is_named() -> None:
    q = torch.full((4, 8), 120.0, dtype=torch.float16)
    x = torch.full((2, 8), 200.0, dtype=torch.float16)
    inf = torch.full((2, 4), math.inf, dtype=torch.float16)
    name, class_id, explanation = top(_ev(Op("mm", (x, q.T), (inf,), source="int8.py:7")), HYPOTHESES)
    assert (name, class_id) == ("nonfinite_producer", "Q4")
    assert "int8.py:7" in explanation.text
    half = Op("mm", (x, (q + 0.37).T), (inf,))
    assert top(_ev(half), HYPOTHESES)[1] == "Q1"
    scores = torch.zeros(2, 4, dtype=torch.float64)
    scores[1] = -math.inf
    assert top(_ev(Op("softmax", (scores,), (scores.softmax(-1),), {"dim": -1})), HYPOTHESES)[1] == "A4"
    k = normal(1, 2, 5, 8, seed=6)
    broken = Op("scaled_dot_product_attention", (k, k, k), (torch.full_like(k, math.nan),))
    assert top(_ev(broken), HYPOTHESES)[1] == "A9"


def test_memory_without_meaning_is_not_a_producer() -> None:
    junk = torch.full((2, 4), math.nan)
    found = named(_ev(Op("empty_like", (torch.zeros(2, 4),), (junk,))), HYPOTHESES)
    assert "nonfinite_producer" not in found


def test_overflow_before_the_scale_without_operations() -> None:
    q = torch.randint(-127, 128, (16, 32), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    x = 300 * normal(4, 32, seed=7)
    ev = Evidence(normal(4, 16), torch.full((4, 16), math.nan), inputs={"x": x}, parameters={"w": (None, q)})
    assert top(ev, HYPOTHESES)[1] == "Q4"
    small = Evidence(normal(4, 16), torch.full((4, 16), math.nan), inputs={"x": x / 300}, parameters={"w": (None, q)})
    assert "Q4" not in named(small, HYPOTHESES).values()


def _bytes(x: Tensor) -> Tensor:
    return x.to(torch.uint8)


def test_casts_to_bytes() -> None:
    found = top(Evidence(_bytes(LEVELS.round()), _bytes(LEVELS), kind="frame"), HYPOTHESES)
    assert found[:2] == ("bytes_export", "V10")
    assert found[2].parameters["how"] == "truncated"
    wide = LEVELS * 1.4 - 40
    wrapped = wide.round().to(torch.int64).remainder(256)
    found = top(Evidence(_bytes(wide.round().clamp(0, 255)), wrapped, kind="frame"), HYPOTHESES)
    assert found[2].parameters["how"] == "wrapped"
    whole = _bytes(LEVELS)
    found = top(Evidence(whole, whole * torch.tensor(255, dtype=torch.uint8), kind="frame"), HYPOTHESES)
    assert found[2].parameters["how"] == "unwidened"
    found = top(Evidence(LEVELS / 255, _bytes(LEVELS), kind="frame"), HYPOTHESES)
    assert found[0] == "float_to_bytes"


def test_a_codec_is_not_a_cast() -> None:
    noise = torch.randint(-2, 3, LEVELS.shape, generator=torch.Generator().manual_seed(3))
    port = (LEVELS.round() + noise).clamp(0, 255)
    assert "bytes_export" not in named(Evidence(_bytes(LEVELS.round()), _bytes(port), kind="frame"), HYPOTHESES)


def test_cleaned_nan() -> None:
    reference = X.clone()
    reference[2:4] = math.nan
    name, class_id, _ = top(Evidence(reference, reference.nan_to_num()), HYPOTHESES)
    assert (name, class_id) == ("cleaned_nan", "V10")


def test_dtypes_of_the_records() -> None:
    w = normal(256, 64, seed=11) / 16
    ev = Evidence((X @ w).float(), (X.bfloat16() @ w.bfloat16()), floor=1e-6)
    assert "N4" in named(ev, HYPOTHESES).values()


@given(
    st.integers(0, 10_000),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1e-6, 1e-4, 2e-4, 1e-2, 0.3]),
)
@settings(max_examples=30, deadline=None)
def test_noise_is_never_explained(seed: int, dtype: torch.dtype, size: float) -> None:
    """Reordered sums (1e-6), TF32 (2e-4), and larger white noise have no cause in precision."""
    reference = normal(4, 30, 16, seed=seed)
    port = reference * (1 + size * normal(4, 30, 16, seed=seed + 1))
    assert named(Evidence(reference.to(dtype), port.to(dtype)), HYPOTHESES) == {}


@given(
    st.integers(0, 10_000), st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from([(5, 40), (2, 3, 4, 7)])
)
@settings(max_examples=30, deadline=None)
def test_rounding_of_any_tensor_is_found(seed: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    reference = normal(*shape, seed=seed)
    assert top(Evidence(reference, reference.to(dtype).float()), HYPOTHESES)[0] == "rounded"


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 3), torch.zeros(4), torch.tensor(1.0), torch.full((8, 8), torch.nan), torch.arange(300)]
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value.double() / 0, value[..., None]):
        for kind in ("activation", "weight", "frame"):
            explain(Evidence(value, other, kind=kind), HYPOTHESES)
