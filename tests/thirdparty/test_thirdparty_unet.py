"""diffusers' UNet and autoencoder against a copy under other names with fused projections, aligned without a map; faults in norms and time embeddings."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from thirdparty_rebuild import fused, renamed
from thirdparty_unet import FAULTS, MODELS, broken
from torch import nn

import parity
from parity.result import Result

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BY_NAME = {fault.name: fault for fault in FAULTS}
LOW = ("norm_eps", "vae_attention_norm")


@cache
def reference(name: str, dtype: str) -> nn.Module:
    return MODELS[name][0](DTYPES[dtype])


def rebuilt(model: nn.Module) -> nn.Module:
    return renamed(fused(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_rebuilt_model_matches_without_a_map(name: str, dtype: str) -> None:
    model = reference(name, dtype)
    port = rebuilt(model)
    assert not {n for n, _ in port.named_modules() if "." in n} & {n for n, _ in model.named_modules() if "." in n}
    result = parity.check(model, port, MODELS[name][1](DTYPES[dtype]))
    assert result.verdict == "match", [(d.key, d.metric, d.error, d.floor) for d in result.divergences]
    assert result.coverage.compared == result.coverage.reference


@cache
def judged(name: str, dtype: str) -> Result:
    fault = BY_NAME[name]
    model = reference(fault.model, dtype)
    return parity.check(model, rebuilt(broken(fault, model)), MODELS[fault.model][1](DTYPES[dtype]))


@pytest.mark.parametrize(("name", "dtype"), [*((name, "fp32") for name in BY_NAME), *((name, "bf16") for name in LOW)])
def test_a_fault_in_the_rebuilt_model_is_placed_and_named(name: str, dtype: str) -> None:
    result, fault = judged(name, dtype), BY_NAME[name]
    assert result.verdict == "diverged"
    assert [culprit.module for culprit in result.culprits] == [fault.module]
    first = result.causes[:1]  # named, or not said to be sure
    assert all(c.class_id == fault.class_id or c.confidence < 0.9 for c in first), [(c.class_id, c.text) for c in first]
    assert not result.coverage.unaligned_reference


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("norm_eps", "eps 1e-05 instead of 1e-06"),
    ],
)
def test_the_cause_says_what_was_changed(name: str, words: str) -> None:
    assert words in judged(name, "fp32").causes[0].text
