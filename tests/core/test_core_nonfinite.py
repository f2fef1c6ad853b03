"""Where NaN and Inf come from: the first operation that makes one from finite inputs, also when it is masked later."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from core_models import Net, noise, seeded
from torch import nn

import parity
from parity.errors import CaseError
from parity.locate.nonfinite import nonfinite_command


class Layer(nn.Module):
    """Runs one function inside a named module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def model(*functions) -> nn.Module:
    return nn.Sequential(*[Layer(f) for f in functions])


def line_with(marker: str) -> str:
    lines = inspect.getsource(inspect.getmodule(line_with)).splitlines()
    return str(1 + next(i for i, text in enumerate(lines) if text.rstrip().endswith(marker)))


def test_finite_models_have_none():
    assert parity.find_nonfinite(seeded(Net), (noise(2, 3, 6),)) is None
    assert parity.find_nonfinite(model(torch.exp, torch.log), (noise(3),)) is None


def test_the_first_producer_with_module_line_and_census():
    def bad(x):
        y = x - 1.0
        return torch.log(y)  # producer

    x = torch.tensor([[2.0, 0.5, 1.0], [3.0, 4.0, -1.0]])
    found = parity.find_nonfinite(model(torch.abs, bad, torch.exp), (x,))
    assert found.operation == "log(f32[2,3])"
    assert found.module == "1"
    assert found.source.rpartition(":")[2] == line_with("# producer")
    assert found.code == "return torch.log(y)  # producer"
    assert (found.nan, found.inf, found.shape, found.dtype, found.index) == (1, 2, (2, 3), "float32", (0, 1))
    assert found.largest_input == 3.0
    assert "first non-finite value: 1 NaN, 2 Inf in float32[2, 3], first at [0, 1]" in found.text
    assert found.to_json()["first"]["module"] == "1"


def test_a_value_that_is_masked_again_is_found_too():
    def masked(x):
        y = 1.0 / x  # division
        return torch.where(torch.isfinite(y), y, 0.0)

    x = torch.tensor([1.0, 0.0])
    assert bool(torch.isfinite(model(masked)(x)).all())
    found = parity.find_nonfinite(model(masked, torch.exp), (x,))
    assert found.operation.startswith(("reciprocal(", "div(", "mul("))
    assert found.source.rpartition(":")[2] == line_with("# division")


def test_operations_in_place():
    def spoil(x):
        y = x.clone()
        y.div_(torch.zeros(1))  # in place
        return y

    found = parity.find_nonfinite(model(spoil), (torch.ones(3),))
    assert found.operation.startswith("div_(")
    assert found.source.rpartition(":")[2] == line_with("# in place")
    assert found.inf == 3


def test_half_precision_overflows():
    found = parity.find_nonfinite(model(torch.neg, lambda x: x * x), (torch.full((4,), 300.0).half(),))
    assert found.operation.startswith("mul(f16[4], f16[4]")
    assert (found.inf, found.largest_input, found.module) == (4, 300.0, "1")
    assert "(largest finite float16: 65504)" in found.text
    # The cast itself is the producer when the value is too large for it.
    cast = parity.find_nonfinite(model(lambda x: x.half().float()), (torch.full((2,), 1e6),))
    assert cast.operation.startswith("_to_copy(f32[2]")
    assert cast.dtype == "float16"


def test_a_norm_of_half_precision_overflows_inside():
    found = parity.find_nonfinite(
        model(lambda x: x / x.pow(2).mean(-1, keepdim=True).sqrt()), (torch.full((1, 8), 400.0).half(),)
    )
    assert found.operation.startswith("pow(")


def test_softmax_of_a_row_that_is_masked_entirely():
    """The mask is meant to be infinite; the NaN comes from the softmax over nothing."""

    def attend(x):
        scores = x.masked_fill(torch.ones_like(x, dtype=torch.bool).triu(0), -math.inf)  # row 0 sees nothing
        return torch.softmax(scores, dim=-1)  # softmax

    found = parity.find_nonfinite(model(attend), (noise(3, 3),))
    assert found is not None
    assert "softmax" in found.operation
    assert (found.nan, found.index) == (3, (0, 0))


def test_a_softmax_over_masked_scores_is_right():
    def attend(x):
        scores = x + torch.full_like(x, -math.inf).triu(1)
        return torch.softmax(scores, dim=-1)

    assert parity.find_nonfinite(model(attend), (noise(3, 3),)) is None


def test_uninitialised_memory_is_no_producer():
    def buffer(x):
        y = torch.empty_like(x)
        y.view(torch.int32).fill_(0x7FC00000)  # as dirty as memory can be
        y.copy_(x)
        return y + torch.full((3,), -math.inf).exp()

    assert parity.find_nonfinite(model(buffer), (noise(3),)) is None


def test_inputs_that_are_not_finite_made_nothing():
    assert parity.find_nonfinite(model(lambda x: x * 2), (torch.tensor([math.nan, 1.0]),)) is None


def test_a_failure_after_the_value_still_tells_where_it_came_from():
    def fails(x):
        raise ValueError("not finite")

    found = parity.find_nonfinite(model(torch.sqrt, fails), (torch.tensor([-1.0]),))
    assert found.operation.startswith("sqrt(")
    with pytest.raises(ValueError, match="not finite"):
        parity.find_nonfinite(model(fails), (torch.ones(1),))


def test_nothing_stays_behind():
    net = model(torch.log)
    parity.find_nonfinite(net, (-torch.ones(2),))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.zeros(1).log().isinf().all()


def test_any_callable_and_keywords():
    found = parity.find_nonfinite(lambda x, scale: torch.log(x) * scale, {"x": torch.zeros(2), "scale": 2.0})
    assert found.operation.startswith("log(")
    assert found.module == ""
    assert "(no module)" in found.text


@pytest.mark.parametrize(
    "target", ["absent_module:make", "math:absent", "math:floor_and_more", "core_models:noise_maker"]
)
def test_a_wrong_target_is_one_line(target):
    with pytest.raises(CaseError, match="cannot load"):
        nonfinite_command(target, None)
