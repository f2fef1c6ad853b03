"""Randomness hypotheses: other streams, orders, dtypes and reused draws, and silence for what only looks random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis
from parity.diagnose.randomness import HYPOTHESES


def explain(ev: Evidence) -> list[tuple[Hypothesis, Explanation]]:
    found = [(h, e) for h in HYPOTHESES for e in h.test(ev)]
    return sorted(found, key=lambda pair: -pair[1].confidence)


def top(ev: Evidence) -> tuple[str, Explanation]:
    found = explain(ev)
    assert found, "nothing was recognised"
    return found[0][1].class_id or found[0][0].class_id, found[0][1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latent(r: Tensor, p: Tensor, **more: object) -> Evidence:
    return Evidence(reference=r, port=p, kind="latent", **more)  # type: ignore[arg-type]


NOISE = normal(2, 4, 3, 6, 7)
STREAM = normal(3000, seed=3)
CASES = {
    "other seed": (latent(NOISE, normal(2, 4, 3, 6, 7, seed=1)), "S1"),
    "later step": (latent(NOISE, normal(2, 4, 3, 6, 7, seed=1), coords={"step": 3}), "S2"),
    "stream moved": (latent(STREAM[:1000].reshape(10, 100), STREAM[64:1064].reshape(10, 100)), "S2"),
    "drawn frames first": (latent(NOISE, NOISE.transpose(1, 2).reshape(2, 4, 3, 6, 7)), "S2"),
    "bf16": (latent(NOISE, NOISE.to(torch.bfloat16).double()), "S2"),
    "fp16 in the reference": (latent(NOISE.to(torch.float16).double(), NOISE), "S2"),
    "one draw": (latent(NOISE, NOISE[:, :, :1].expand_as(NOISE)), "S3"),
    "one other draw": (latent(NOISE, normal(2, 4, 1, 6, 7, seed=6).expand_as(NOISE)), "S3"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_is_named(case: str) -> None:
    ev, class_id = CASES[case]
    assert top(ev)[0] == class_id, explain(ev)


def test_offset_of_the_stream_is_read_back() -> None:
    assert top(CASES["stream moved"][0])[1].parameters["offset"] == 64


def test_near_misses_are_silent() -> None:
    assert not explain(latent(NOISE, 0.5 * NOISE + 0.5 * normal(*NOISE.shape, seed=2)))
    assert not explain(latent(2 * NOISE, 2 * normal(*NOISE.shape, seed=2)))  # not unit noise: some activation
    smooth = NOISE + NOISE.roll(1, -1)
    assert not explain(latent(smooth / smooth.std(), normal(*NOISE.shape, seed=2)))
    uniform = 3**0.5 * (2 * torch.rand(900, dtype=torch.float64) - 1)
    assert not explain(latent(uniform, normal(900)))
    assert not explain(latent(NOISE, NOISE + 1e-3 * normal(*NOISE.shape, seed=4)))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(8, 16), st.integers(8, 16)),
    seed=st.integers(0, 999),
)
def test_unrelated_noise_is_seen_in_any_shape(shape: tuple[int, ...], seed: int) -> None:
    if math.prod(shape) < 256:
        return
    found = explain(latent(normal(*shape, seed=seed), normal(*shape, seed=seed + 1000)))
    # five-sigma tests on small samples may decline, but never name another class
    assert {e.class_id or h.class_id for h, e in found} <= {"S1"}


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    kind=st.sampled_from(["activation", "latent", "output"]),
    seed=st.integers(0, 999),
)
def test_rounding_is_silent(dtype: torch.dtype, kind: str, seed: int) -> None:
    x = normal(4, 60, seed=seed)
    p = (x.float() * (1 + 2e-7 * normal(4, 60, seed=seed + 1)).float()).to(dtype)
    assert not explain(Evidence(reference=x.to(dtype), port=p, kind=kind, floor=torch.finfo(dtype).eps))


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 4), torch.ones(1), torch.empty(0), torch.full((300,), math.nan)])
def test_degenerate_values_do_not_raise(value: Tensor) -> None:
    for other in (value + 1, value, torch.ones(3), torch.zeros(2, 3, 4, dtype=torch.long)):
        for kind in ("latent", "activation", "input"):
            explain(Evidence(reference=value, port=other, kind=kind))
