"""Gradients are compared like activations: first divergence in backward order, and the module whose own backward is wrong."""

from __future__ import annotations

import re

import gradient_models as zoo
import pytest
import torch

import parity


@pytest.fixture(scope="module")
def reference():
    return zoo.build()


@pytest.mark.parametrize("name", sorted(zoo.RIGHT))
def test_a_right_backward_is_quiet(name: str, reference):
    result = parity.check(reference, zoo.changed(zoo.RIGHT[name]), zoo.inputs(), backward=True)
    assert result.verdict == "match", (result.first, result.coverage)
    gradients = [row for row in result.rows if row.kind == "gradient"]
    assert len(gradients) > 60


@pytest.mark.parametrize("name", sorted(zoo.FAULTS))
def test_a_wrong_backward_is_placed(name: str, reference):
    change, module = zoo.FAULTS[name]
    result = parity.check(reference, zoo.changed(change), zoo.inputs(), backward=True)
    assert result.verdict == "diverged"
    assert result.first.kind == "gradient"
    assert result.culprit.module == module


def step(**options):
    pair = zoo.Pair(zoo.build())
    return (zoo.trainer(**options), pair)


@pytest.mark.parametrize("name", sorted(zoo.STEP_FAULTS))
def test_a_wrong_training_step_is_found(name: str):
    options, site = zoo.STEP_FAULTS[name]
    result = parity.check(step(), step(**options), (*zoo.inputs(), zoo.target()), backward=True)
    assert result.verdict == "diverged"
    assert re.fullmatch(site, result.first.site), result.first
    assert result.culprit.module == "model" or options.get("ema_first")  # the step, none of its modules


@pytest.mark.parametrize("name", sorted(zoo.STEP_RIGHT))
def test_a_right_training_step_is_quiet(name: str):
    result = parity.check(step(), step(**zoo.STEP_RIGHT[name]), (*zoo.inputs(), zoo.target()), backward=True)
    assert result.verdict == "match", (result.first, result.coverage)


def test_nothing_of_the_users_models_changes(reference):
    port = zoo.build()
    reference.x_embed.weight.grad = torch.ones_like(reference.x_embed.weight)
    before = {n: p.detach().clone() for n, p in reference.named_parameters()}
    try:
        parity.check(reference, port, zoo.inputs(), backward=True)
        assert torch.equal(reference.x_embed.weight.grad, torch.ones_like(reference.x_embed.weight))
        assert all(p.grad is None for n, p in reference.named_parameters() if n != "x_embed.weight")
        assert all(torch.equal(p, before[n]) for n, p in reference.named_parameters())
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in reference.modules())
    finally:
        reference.x_embed.weight.grad = None


def test_a_model_without_gradients_is_refused_in_one_line(reference):
    still = zoo.build().requires_grad_(False)
    with pytest.raises(parity.ParityError, match="nothing that the model returns has a gradient"):
        parity.check(
            (lambda m, *a: m(*a).detach(), still), (lambda m, *a: m(*a).detach(), still), zoo.inputs(), backward=True
        )
