"""What is a matter of form, and what only looks like it: masks, roundoff."""

from __future__ import annotations

import math

import pytest
import torch

from parity.compare.benign import is_roundoff, same_mask
from parity.compare.measure import hidden_places
from parity.result import Row

KEEP = torch.tensor([[True, True, False], [True, False, False]])
BIAS = torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.1, -0.4]])


def additive(keep: torch.Tensor, hide: float, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    return torch.zeros(keep.shape).masked_fill(~keep, hide) + bias


@pytest.mark.parametrize("hide", [-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4])
def test_one_mask_in_many_forms(hide: float) -> None:
    assert same_mask(additive(KEEP, -1e30), additive(KEEP, hide))
    assert same_mask(KEEP, additive(KEEP, hide))
    assert same_mask(~KEEP, additive(KEEP, hide))
    assert same_mask(additive(KEEP, -1e30, BIAS), additive(KEEP, hide, BIAS))


def test_masks_that_are_not_the_same() -> None:
    other = KEEP.clone()
    other[1, 1] = True
    assert not same_mask(additive(KEEP, -1e30), additive(other, -math.inf))
    assert not same_mask(KEEP, additive(other, -math.inf))
    assert not same_mask(additive(KEEP, -1e30, BIAS), additive(KEEP, -1e30, 1.01 * BIAS))
    assert not same_mask(KEEP, additive(KEEP, -1e30, BIAS))
    assert not same_mask(BIAS, 1.01 * BIAS)


def test_a_row_without_any_key_is_no_matter_of_form() -> None:
    empty = KEEP.clone()
    empty[1] = False
    assert not same_mask(additive(empty, -1e30), additive(empty, -math.inf))
    assert same_mask(additive(empty, -1e30), additive(empty, -1e9))


def test_outliers_that_overflow_are_no_mask() -> None:
    value = torch.tensor([[0.5, -2.0, -73210.0], [1.0, 3.0, -91500.0]])
    assert not same_mask(value, value.masked_fill(value < -65504, -math.inf))
    assert not same_mask(value, value.masked_fill(value < -65504, -65504.0))


def test_hidden_places_need_a_gap() -> None:
    assert hidden_places(additive(KEEP, -1e30, BIAS)).tolist() == (~KEEP).tolist()
    assert hidden_places(torch.tensor([-2e4, -9e3, 1.0])) is None
    assert hidden_places(BIAS) is None
    assert hidden_places(torch.tensor([[0.5, -70000.0, 3.0]])) is None


def row(**more) -> Row:
    base = {"site": "x", "coords": {}, "kind": "activation", "order": 0, "error": 2e-6, "floor": 1e-6}
    base |= {"dtype": ("float32", "float32"), "diverged": True, "isolated": 1e-9}
    return Row(**(base | more))


def test_roundoff_is_small_and_gone_in_double() -> None:
    assert is_roundoff(row())
    assert not is_roundoff(row(isolated=1e-5))
    assert not is_roundoff(row(error=1e-3))


def test_a_run_in_double_carries_its_single_constants_along() -> None:
    carried = row(dtype=("float64", "float64"), error=1e-4, floor=1e-14, isolated=3e-7)
    assert is_roundoff(carried, torch.float64)
    assert not is_roundoff(carried)
    assert not is_roundoff(row(dtype=("float64", "float64"), error=1e-4, floor=1e-14, isolated=1e-5), torch.float64)
    assert not is_roundoff(row(dtype=("float64", "float64"), error=1e-2, floor=1e-14, isolated=0.0), torch.float64)


def test_other_elements_that_are_finite_are_no_roundoff() -> None:
    assert not is_roundoff(row(nonfinite=(0, 260)))
    assert not is_roundoff(row(nonfinite=(3, 3), error=0.0))
