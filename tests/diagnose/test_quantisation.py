"""Quantisation hypotheses: the grid, its scope, and what is wrong with its scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.quantisation import HYPOTHESES

W = normal(64, 256, seed=1)


def int8(w: Tensor, scope: str = "row", top_value: float | None = None, levels: int = 127) -> Tensor:
    if scope == "tensor":
        largest = w.abs().amax()
    elif scope == "row":
        largest = w.abs().amax(1, keepdim=True)
    else:
        group = int(scope)
        return int8(w.reshape(-1, group)).reshape(w.shape)
    largest = largest if top_value is None else torch.as_tensor(top_value, dtype=w.dtype)
    step = largest / levels
    return (w / step).round().clamp(-levels, levels) * step


@pytest.mark.parametrize(("scope", "said"), [("row", "row"), ("tensor", "tensor"), ("64", "group of 64")])
@pytest.mark.parametrize("levels", [127, 7])
def test_healthy_integers(scope: str, said: str, levels: int) -> None:
    port = int8(W, scope, levels=levels) if scope != "64" else int8(W, scope)
    name, class_id, explanation = top(Evidence(W, port, kind="weight"), HYPOTHESES)
    assert (name, class_id) == ("int8_grid", "Q6")
    assert explanation.parameters["scope"] == said
    assert explanation.residual < 0.05


def test_outliers_ruin_one_scale() -> None:
    w = W.clone()
    w[:, 3] *= 60
    _, class_id, explanation = top(Evidence(w, int8(w, "tensor"), kind="weight"), HYPOTHESES)
    assert class_id == "Q2"
    assert explanation.parameters["outlier"] > 20


def test_clipping_shows_in_the_slope() -> None:
    _, class_id, explanation = top(Evidence(W, int8(W, "tensor", 1.0), kind="weight"), HYPOTHESES)
    assert class_id == "Q2"
    assert explanation.parameters["slope"] == pytest.approx(0.68, abs=0.02)
    assert explanation.parameters["clipped"] > 0.2


def test_payload_without_scale() -> None:
    payload = (1e-2 * W / (1e-2 * W).abs().max() * 127).round()
    assert top(Evidence(1e-2 * W, payload, kind="weight"), HYPOTHESES)[1] == "W1"


def test_both_sides_quantised_is_nothing() -> None:
    assert named(Evidence(int8(W), int8(W + 0.05 * normal(64, 256, seed=3)), kind="weight"), HYPOTHESES) == {}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scaled", [False, True])
def test_healthy_float8(dtype: torch.dtype, scaled: bool) -> None:
    scale = float(W.abs().max()) / torch.finfo(dtype).max if scaled else 1.0
    port = (W / scale).to(torch.float32).to(dtype).to(torch.float64) * scale
    name, class_id, explanation = top(Evidence(W, port, kind="weight"), HYPOTHESES)
    assert (name, class_id) == ("float8_grid", "Q6")
    assert explanation.parameters["scale"] == pytest.approx(scale, rel=1e-5)


def test_float8_at_its_ends() -> None:
    large = 250 * W
    saturated = large.clamp(-448, 448).to(torch.float32).to(torch.float8_e4m3fn).to(torch.float64)
    assert top(Evidence(large, saturated), HYPOTHESES)[1] == "Q3"
    broken = saturated.clone()
    broken[large.abs() > 464] = torch.nan
    _, class_id, explanation = top(Evidence(large, broken), HYPOTHESES)
    assert class_id == "Q3"
    assert explanation.parameters["nan"] > 0


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.floats(1e-3, 1.0))
@settings(max_examples=30, deadline=None)
def test_noise_is_never_a_grid(seed: int, dtype: torch.dtype, size: float) -> None:
    reference, noise = normal(32, 128, seed=seed), normal(32, 128, seed=seed + 1)
    ev = Evidence(reference.to(dtype), (reference + size * noise).to(dtype), kind="weight")
    assert named(ev, HYPOTHESES) == {}


@given(st.integers(0, 10_000), st.sampled_from([(8, 64), (3, 200), (16, 33)]), st.sampled_from(["row", "tensor"]))
@settings(max_examples=30, deadline=None)
def test_any_int8_tensor_is_found(seed: int, shape: tuple[int, int], scope: str) -> None:
    w = normal(*shape, seed=seed)
    assert top(Evidence(w, int8(w, scope).float(), kind="weight"), HYPOTHESES)[0] == "int8_grid"


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 3), torch.zeros(80), torch.ones(20, 20), torch.full((8, 8), torch.nan), torch.eye(20)]
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value + 1):
        explain(Evidence(value, other, kind="weight"), HYPOTHESES)
