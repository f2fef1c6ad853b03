"""The seeded study on diffusers' Wan transformer: 14 faults, faults under other names and fusions, benign rewrites; float32 and bfloat16.

In bfloat16 a feed-forward that computes in bfloat16 is what everyone does: no fault.
"""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
import torch
from thirdparty_rebuild import (
    SplitK,
    StoredTransposed,
    WideSum,
    fused,
    renamed,
    replace_linears,
    strided,
    with_class,
    wrapped,
)
from thirdparty_wan import BY_NAME, broken, build_wan, wan_inputs
from torch import nn

import parity
from parity.result import Result

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
reference = cache(build_wan)


@cache
def judged(fault: str, dtype: str) -> Result:
    model = reference(DTYPES[dtype])
    return parity.check(model, broken(BY_NAME[fault], model), wan_inputs(DTYPES[dtype]))


def placed(result: Result, fault: str) -> bool:
    """Every culprit is where the fault is, and there is one."""
    modules = {culprit.module for culprit in result.culprits}
    first = result.culprit is not None and re.fullmatch(BY_NAME[fault].module, result.culprit.module)
    return bool(first) and all(re.fullmatch(BY_NAME[fault].module, module) for module in modules)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", BY_NAME)
def test_a_fault_is_seen_and_placed(fault: str, dtype: str) -> None:
    result = judged(fault, dtype)
    if (fault, dtype) == ("bf16_ffn", "bf16"):
        assert result.verdict == "match"
        return
    assert result.verdict == "diverged"
    assert placed(result, fault), [culprit.module for culprit in result.culprits]


@pytest.mark.parametrize("fault", BY_NAME)
def test_a_fault_is_named(fault: str) -> None:
    """The top cause is a right one, or not said to be sure."""
    first = judged(fault, "fp32").causes[:1]
    assert all(c.class_id in BY_NAME[fault].classes or c.confidence < 0.9 for c in first), first


def test_a_masked_nan_is_not_finite_before_its_mask() -> None:
    first = judged("masked_nan", "fp32").first
    assert first is not None
    assert (first.site, first.metric) == ("blocks.1.ffn.net.0.proj", "nonfinite")


REBUILT = {
    "rename": renamed,
    "fuse": fused,
    "rename and fuse": lambda model: renamed(fused(model)),
}


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("gelu_erf", "rename"),
        ("head_permute", "rename"),
        ("rope_offset", "rename"),
        ("attn_scale", "fuse"),
        ("gelu_erf", "fuse"),
        ("int8_weight", "rename and fuse"),
        ("timestep_flip", "rename and fuse"),
        ("swapped_modulation", "rename and fuse"),
    ],
)
def test_a_fault_in_another_structure_is_placed_without_a_map(fault: str, how: str) -> None:
    model = reference()
    result = parity.check(model, REBUILT[how](broken(BY_NAME[fault], model)), wan_inputs())
    assert result.verdict == "diverged"
    assert placed(result, fault), [culprit.module for culprit in result.culprits]
    assert not result.coverage.unaligned_reference


BENIGN = {
    "same": copy.deepcopy,
    "split-K": lambda model: replace_linears(model, with_class(SplitK)),
    "float64 sums": lambda model: replace_linears(model, with_class(WideSum)),
    "weights [in, out]": lambda model: replace_linears(model, StoredTransposed),
    "strided weights": strided,
    "fused": fused,
    "fused, parts left over": lambda model: fused(model, drop=False),
    "other names": renamed,
    "blocks -> layers": lambda model: renamed(model, {"blocks": "layers"}),
    "in a shell": wrapped,
    "other names, fused, in a shell": lambda model: wrapped(renamed(fused(model))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rewrite", BENIGN)
def test_a_benign_rewrite_matches(rewrite: str, dtype: str) -> None:
    model = reference(DTYPES[dtype])
    result = parity.check(model, BENIGN[rewrite](model), wan_inputs(DTYPES[dtype]))
    assert result.verdict == "match", [(d.key, d.metric, d.error, d.floor) for d in result.divergences]
    assert result.coverage.compared == result.coverage.reference
    assert not result.coverage.unaligned_reference


def test_a_reference_that_is_fused_leaves_its_fused_sites_alone() -> None:
    """A port that splits what the reference fuses is compared around the projection."""
    model = reference()
    whole = fused(model)
    assert parity.check(whole, model, wan_inputs()).verdict == "match"
    result = parity.check(whole, broken(BY_NAME["int8_weight"], model), wan_inputs())
    assert result.verdict == "diverged"
    assert {culprit.module for culprit in result.culprits} == {"blocks.2.attn1"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_independent_faults_show_in_one_pass(dtype: str) -> None:
    faults = ["ln_eps", "gelu_erf", "attn_scale", "timestep_flip"]
    model = reference(DTYPES[dtype])
    port: nn.Module = model
    for name in faults:
        port = broken(BY_NAME[name], port)
    result = parity.check(model, port, wan_inputs(DTYPES[dtype]))
    modules = [culprit.module for culprit in result.culprits]
    assert len(modules) == len(faults)
    assert all(any(re.fullmatch(BY_NAME[name].module, module) for module in modules) for name in faults)
