"""Every legitimate change stays within the size that its dtype allows."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor

from fixtures.synthetic.models import NAMES, load
from fixtures.synthetic.models.witness import relative_error
from fixtures.synthetic.variations import VARIATIONS
from fixtures.synthetic.variations.variation import ZooVariation

QUICK = tuple(v for v in VARIATIONS if not v.slow)


@cache
def reference(name: str) -> dict[str, Tensor]:
    zoo = load(name)
    return zoo.run(zoo.build(0), zoo.make_inputs(0))


def varied(variation: ZooVariation) -> dict[str, Tensor]:
    zoo = load(variation.model)
    model = zoo.build(0)
    with variation.applied(model):
        return variation.execute(zoo, model, zoo.make_inputs(0))


@pytest.mark.parametrize("variation", QUICK, ids=lambda v: v.name)
def test_a_variation_stays_within_its_size(variation: ZooVariation) -> None:
    right, outputs = reference(variation.model), varied(variation)
    assert outputs.keys() == right.keys()
    for key, value in right.items():
        assert outputs[key].shape == value.shape, key
        if value.dtype == torch.uint8 and variation.dtype in ("float32", "float64"):
            assert (outputs[key].int() - value.int()).abs().max() <= 1, key
        else:
            error = relative_error(outputs[key].float(), value.float())
            assert error <= variation.tolerance, f"{key}: {error:.2e}"


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_felt(name: str) -> None:
    """A low-precision variation which changed nothing would test nothing."""
    for variation in (v for v in QUICK if v.model == name and v.dtype in ("bfloat16", "float16")):
        right, outputs = reference(name), varied(variation)
        assert max(relative_error(outputs[key].float(), right[key].float()) for key in right) > 1e-4, variation.name


def test_nothing_is_left_behind() -> None:
    for variation in QUICK:
        with pytest.raises(KeyboardInterrupt), variation.applied(load(variation.model).build(0)):
            raise KeyboardInterrupt
    for name in NAMES:
        zoo = load(name)
        again, right = zoo.run(zoo.build(0), zoo.make_inputs(0)), reference(name)
        assert all(torch.equal(again[key], right[key]) for key in right)


def test_the_table_is_sound() -> None:
    assert len(VARIATIONS) >= 65
    assert max(Counter(v.name for v in VARIATIONS).values()) == 1
    limits = {"float32": 1e-4, "float64": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}
    for variation in VARIATIONS:
        assert variation.tolerance <= limits[variation.dtype], variation.name
        assert all(re.compile(pattern) for pattern in variation.moved), variation.name
        assert not (variation.moved and variation.outputs_only), variation.name
    assert (
        sum(v.dtype == "float32" and v.tolerance > 3e-5 for v in VARIATIONS) <= 2
    )  # before a rounding to int8 or float16


def test_renames_point_at_modules_of_both_sides() -> None:
    for variation in (v for v in VARIATIONS if v.renames):
        zoo = load(variation.model)
        model, plain = zoo.build(0), zoo.build(0)
        with variation.applied(model):
            for port, right in variation.renames.items():
                model.get_submodule(port), plain.get_submodule(right)
