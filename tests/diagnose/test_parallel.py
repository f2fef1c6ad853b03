"""Parallel hypotheses: what goes wrong when one computation is split over ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.parallel import HYPOTHESES

X = normal(2, 24, 32, seed=1)
BIAS = normal(32, seed=2)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bias_of_every_rank(ranks: int) -> None:
    ev = Evidence(X + BIAS, X + ranks * BIAS, parameters={"o.bias": (BIAS, BIAS)})
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("bias_per_rank", "D1")
    assert explanation.parameters["times"] == ranks


def test_a_missing_or_half_bias_is_not_of_ranks() -> None:
    for port in (X, X + 1.5 * BIAS, X + 2 * BIAS + 0.3 * normal(2, 24, 32, seed=3)):
        assert "D1" not in named(Evidence(X + BIAS, port, parameters={"o.bias": (BIAS, BIAS)}), HYPOTHESES).values()


@pytest.mark.parametrize(("axis", "n"), [(2, 4), (1, 2), (1, 3)])
@pytest.mark.parametrize("source", [0, 1])
def test_the_same_shard_everywhere(axis: int, n: int, source: int) -> None:
    port = torch.cat([X.chunk(n, axis)[source]] * n, axis)
    name, class_id, explanation = top(Evidence(X, port), HYPOTHESES)
    assert (name, class_id) == ("same_shard", "D2")
    assert (explanation.parameters["axis"], explanation.parameters["shards"]) == (axis, n)


def test_shards_that_are_almost_the_same() -> None:
    port = torch.cat([X.chunk(4, 2)[0]] * 4, 2)
    port[..., 20] += 0.5
    assert "same_shard" not in named(Evidence(X, port), HYPOTHESES)


def rms(x: Tensor, n: int = 1) -> Tensor:
    parts = x.reshape(*x.shape[:-1], n, -1)
    return (parts * parts.square().mean(-1, keepdim=True).rsqrt()).reshape(x.shape)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("captured", [False, True])
def test_a_norm_over_each_shard(n: int, captured: bool) -> None:
    w = 1 + 0.2 * normal(32, seed=4)
    ev = Evidence(rms(X) * w, rms(X, n) * w, inputs={"x": X} if captured else {})
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("shard_statistics", "A7")
    assert explanation.parameters["shards"] == n
    assert explanation.parameters["verified"] is captured


def test_one_factor_per_token_is_not_of_shards() -> None:
    port = rms(X) * (1 + 0.1 * normal(2, 24, 1, seed=5))
    assert named(Evidence(rms(X), port), HYPOTHESES) == {}


def test_group_statistics_of_each_stripe() -> None:
    x = normal(2, 4, 3, 8, 10, seed=6) * (1 + torch.arange(8).reshape(1, 1, 1, 8, 1))

    def norm(part: Tensor) -> Tensor:
        return (part - part.mean((2, 3, 4), keepdim=True)) / part.std((2, 3, 4), keepdim=True)

    port = torch.cat([norm(part) for part in x.chunk(2, 3)], 3)
    name, class_id, explanation = top(Evidence(norm(x), port, kind="latent"), HYPOTHESES)
    assert (name, class_id) == ("spatial_statistics", "D4")
    assert (explanation.parameters["axis"], explanation.parameters["shards"]) == (3, 2)


def test_a_short_tail_is_a_hint() -> None:
    port = X.clone()
    port[:, 22:] += normal(2, 2, 32, seed=7)
    name, class_id, explanation = top(Evidence(X, port), HYPOTHESES)
    assert (name, class_id) == ("short_tail", "D3")
    assert explanation.confidence < 0.5
    port[:, 3] += 1
    assert explain(Evidence(X, port), HYPOTHESES) == []


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-3, 2.0))
@settings(max_examples=40, deadline=None)
def test_noise_is_never_explained(seed: int, dtype: torch.dtype, size: float) -> None:
    reference = normal(2, 24, 32, seed=seed)
    port = reference + size * normal(2, 24, 32, seed=seed + 1)
    assert named(Evidence(reference.to(dtype), port.to(dtype), parameters={"b": (BIAS, BIAS)}), HYPOTHESES) == {}


@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([(3, 16), (2, 5, 16), (2, 3, 4, 16)]))
@settings(max_examples=30, deadline=None)
def test_any_repeated_bias_is_found(seed: int, ranks: int, shape: tuple[int, ...]) -> None:
    x, b = normal(*shape, seed=seed), normal(16, seed=seed + 1)
    assert top(Evidence(x + b, x + ranks * b, parameters={"b": (b, b)}), HYPOTHESES)[2].parameters["times"] == ranks


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 3), torch.zeros(4), torch.ones(2, 4, 16), torch.full((8, 8), torch.nan)]
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value + 1, value[..., None]):
        explain(Evidence(value, other, parameters={"p": (value, other)}), HYPOTHESES)
