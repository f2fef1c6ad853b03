"""Models of transformers as others wrote them: eager against SDPA attention matches, and what is broken in one of the two is placed and named."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from thirdparty_llama import FAULTS, HfBreak, runner
from thirdparty_transformers import MODELS, load

import parity
from parity.result import Result

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
BY_NAME = {fault.name: fault for fault in FAULTS}
# In half precision too: one of each kind, and those below the noise of bf16.
LOW = ("rotary_pairing", "gqa_tiled", "causal_corner", "rms_eps", "softmax_scale", "t5_gelu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_eager_and_sdpa_match(name: str, dtype: str) -> None:
    (reference, inputs), (port, _) = load(name, DTYPES[dtype]), load(name, DTYPES[dtype], "sdpa")
    result = parity.check(reference, port, inputs)
    assert result.verdict == "match", [(d.key, d.metric, d.error, d.floor) for d in result.divergences]
    # What stays alone are the weights of the attention and the masks, which SDPA has not.
    assert result.coverage.compared >= 0.88 * result.coverage.reference
    assert not result.coverage.unaligned_port


@cache
def judged(name: str, dtype: str) -> Result:
    fault = BY_NAME[name]
    (reference, inputs), (port, _) = load(fault.model, DTYPES[dtype]), load(fault.model, DTYPES[dtype], fault.attention)
    fault.change(port)
    plain = HfBreak("", fault.model, "", (), decoding=fault.decoding)
    return parity.check((runner(plain), reference), (runner(fault), port), inputs)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp32") for name in BY_NAME), *((name, "bf16") for name in LOW), ("t5_gelu", "fp16")]
)
def test_a_fault_is_placed_and_named(name: str, dtype: str) -> None:
    result, fault = judged(name, dtype), BY_NAME[name]
    assert result.verdict == "diverged"
    modules = [culprit.module for culprit in result.culprits]
    assert modules
    assert all(re.fullmatch(fault.module, module) for module in modules), modules
    first = result.causes[:1]  # named, or not said to be sure
    assert all(c.class_id in fault.classes or c.confidence < 0.9 for c in first), [(c.class_id, c.text) for c in first]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rms_eps", "eps 1e-05 instead of 1e-06"),
    ],
)
def test_the_cause_says_what_was_changed(name: str, words: str) -> None:
    assert words in judged(name, "fp32").causes[0].text
