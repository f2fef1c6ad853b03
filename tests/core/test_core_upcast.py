"""Upcasting: everything a model holds becomes float64 and stays so; what is shared with others is not touched."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from core_models import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parity.capture.upcast import keep_double, upcast_in_place

LOW = (torch.float32, torch.bfloat16, torch.float16)
CONSTANTS = {"table": torch.linspace(0, 1, 5), "names": ["a", "b"]}
Two = namedtuple("Two", ["x", "dtype"])


@dataclass(frozen=True)
class Frozen:
    scale: torch.Tensor
    dtype: torch.dtype = torch.bfloat16
    width: int = 3


@dataclass
class Mutable:
    cache: list[torch.Tensor] = field(default_factory=list)
    dtype: torch.dtype = torch.float32


class Model(nn.Module):
    """Holds numbers in every place where models hold them."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.tied = self.a
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight  # tied
        self.register_buffer("table", noise(4))
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("nothing", None)
        self.register_buffer("hidden", noise(4), persistent=False)
        self.to(dtype)
        self.dtype = dtype
        self.plain = noise(3).to(dtype)
        self.held = {"deep": [noise(2).to(dtype), {"er": (noise(2).half(), 5)}]}
        self.pair = Two(noise(2).to(dtype), dtype)
        self.frozen = SHARED
        self.state = Mutable([noise(2).to(dtype)])
        self.constants = CONSTANTS
        self.whole = torch.arange(3)
        self.z = torch.complex(noise(2), noise(2))
        self.helper = Helper(dtype)
        self.act = self.helper.apply  # a bound method leads to its object
        self.itself = [self]  # cycles end


class Helper:
    def __init__(self, dtype: torch.dtype) -> None:
        self.scale = torch.ones(2).to(dtype)

    def apply(self, x):
        return x * self.scale


SHARED = Frozen(noise(2).bfloat16())


@pytest.mark.parametrize("dtype", LOW)
def test_everything_that_a_model_holds_becomes_double_and_keeps_its_value(dtype):
    model = Model(dtype)
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    plain, deep = model.plain.clone(), model.held["deep"][1]["er"][0].clone()
    assert upcast_in_place(model) is model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.dtype is (torch.int64 if name == "index" else torch.float64), name
        assert torch.equal(tensor.double(), before[name].double()), name  # rounded constants stay rounded
    assert model.dtype is torch.float64
    assert torch.equal(model.plain, plain.double())
    assert torch.equal(model.held["deep"][1]["er"][0], deep.double())
    assert model.held["deep"][1]["er"][1] == 5
    assert type(model.pair) is Two
    assert (model.pair.x.dtype, model.pair.dtype) == (torch.float64, torch.float64)
    assert model.state.cache[0].dtype is torch.float64
    assert model.state.dtype is torch.float64
    assert model.whole.dtype is torch.int64
    assert model.z.dtype is torch.complex128
    assert model.helper.scale.dtype is torch.float64
    assert model.act(torch.ones(2, dtype=torch.float64)).dtype is torch.float64
    assert model.nothing is None
    assert "hidden" in model._non_persistent_buffers_set


def test_tied_weights_stay_tied_and_parameters_stay_the_same_objects():
    model = Model()
    weight = model.a.weight
    upcast_in_place(model)
    assert model.b.weight is model.a.weight is weight
    assert model.tied is model.a
    with torch.no_grad():
        model.a.weight.zero_()
    assert not bool(model.b.weight.any())


def test_frozen_records_and_constants_of_the_code_are_not_touched():
    scale, table = SHARED.scale.clone(), CONSTANTS["table"].clone()
    model = Model()
    upcast_in_place(model)
    assert model.frozen is not SHARED
    assert (model.frozen.scale.dtype, model.frozen.dtype, model.frozen.width) == (torch.float64, torch.float64, 3)
    assert SHARED.scale.dtype is torch.bfloat16
    assert SHARED.dtype is torch.bfloat16
    assert torch.equal(SHARED.scale, scale)
    assert model.constants is not CONSTANTS
    assert model.constants["table"].dtype is torch.float64
    assert CONSTANTS["table"].dtype is torch.float32
    assert torch.equal(CONSTANTS["table"], table)


def test_a_copy_is_upcast_without_the_original():
    model = Model()
    wide = upcast_in_place(copy.deepcopy(model))
    assert wide.a.weight.dtype is torch.float64
    assert model.a.weight.dtype is torch.bfloat16
    assert model.dtype is torch.bfloat16
    assert model.state.cache[0].dtype is torch.bfloat16


def test_inputs_are_returned_anew_and_shared_objects_stay_shared():
    x = noise(3).half()
    inputs = {"x": x, "again": [x], "steps": 4, "name": "n", "mask": torch.ones(3, dtype=torch.bool)}
    wide = upcast_in_place(inputs)
    assert inputs["x"].dtype is torch.float16
    assert wide["x"].dtype is torch.float64
    assert wide["again"][0] is wide["x"]
    assert wide["mask"].dtype is torch.bool
    assert upcast_in_place(5) == 5
    assert upcast_in_place(torch.float32) is torch.float64
    same = [torch.arange(3), "x"]
    assert upcast_in_place(same) is same


CASTS = {
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "to positional": lambda x: x.to(torch.bfloat16),
    "to keyword": lambda x: x.to(dtype=torch.float16),
    "to device and dtype": lambda x: x.to("cpu", torch.float32),
    "to like": lambda x: x.to(torch.zeros(1, dtype=torch.float64)),
    "type_as": lambda x: x.type_as(LOW_TENSOR),
    "to another tensor": lambda x: x.to(LOW_TENSOR),
    "type": lambda x: x.type(torch.bfloat16),
    "type by name": lambda x: x.type("torch.FloatTensor"),
    "new_zeros": lambda x: x.new_zeros(3, dtype=torch.float32),
    "zeros": lambda x: torch.zeros(3),
    "zeros of dtype": lambda x: torch.zeros(3, dtype=torch.bfloat16),
    "full_like": lambda x: torch.full_like(x, 2.0, dtype=torch.float16),
    "linspace": lambda x: torch.linspace(0, 1, 3, dtype=torch.float32),
    "arange": lambda x: torch.arange(3, dtype=torch.float32),
    "softmax": lambda x: torch.softmax(x, -1, dtype=torch.float32),
    "sum": lambda x: x.sum(-1, keepdim=True, dtype=torch.float32),
    "tensor": lambda x: torch.tensor([1.0, 2.0]),
    "as_tensor": lambda x: torch.as_tensor([1.0], dtype=torch.float32),
    "from python": lambda x: x * torch.tensor(0.1),
    "out dtype": lambda x: torch.mean(x, dim=0, keepdim=True, dtype=torch.bfloat16),
}
LOW_TENSOR = torch.zeros(1, dtype=torch.bfloat16)


@pytest.mark.parametrize("cast", CASTS)
def test_casts_are_held_back(cast):
    x = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    with keep_double():
        result = CASTS[cast](x)
        assert result.dtype is torch.float64
        if cast in ("float", "half", "bfloat16") or cast.startswith(("to ", "type")):
            assert torch.equal(result, x)  # nothing was rounded on the way


def test_casts_to_integers_and_bools_are_left():
    x = torch.tensor([1.5, -2.0], dtype=torch.float64)
    with keep_double():
        assert x.long().tolist() == [1, -2]
        assert x.to(torch.int32).dtype is torch.int32
        assert x.bool().dtype is torch.bool
        assert torch.zeros(2, dtype=torch.uint8).dtype is torch.uint8


def test_complex_values_are_widened():
    with keep_double():
        assert torch.polar(torch.ones(2), torch.ones(2)).dtype is torch.complex128
        assert torch.zeros(2, dtype=torch.complex64).dtype is torch.complex128
        assert torch.zeros(2, dtype=torch.complex128).to(torch.complex64).dtype is torch.complex128


@settings(max_examples=10)
@given(default=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), fail=st.booleans())
def test_the_default_dtype_is_put_back(default, fail):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        try:
            with keep_double():
                assert torch.get_default_dtype() is torch.float64
                if fail:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert fail
        assert torch.get_default_dtype() is default
        assert torch.zeros(1).dtype is default
        assert torch.ones(2, dtype=torch.float64).float().dtype is torch.float32  # casts cast again
    finally:
        torch.set_default_dtype(before)


def test_rounding_vanishes_and_bugs_stay():
    """What upcasting is for: a bf16 model with hard-coded casts gives the float64 result; another eps does not."""

    class Norm(nn.Module):
        def __init__(self, eps: float, casts: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(noise(64).bfloat16())
            self.eps, self.casts = eps, casts

        def forward(self, x):
            y = x.float() if self.casts else x
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
            return (y.to(torch.bfloat16) if self.casts else y) * self.weight

    x = noise(8, 64).bfloat16()
    deployed = [Norm(1e-6, True)(x), Norm(1e-6, False)(x)]
    assert not torch.equal(*deployed)
    with keep_double():
        plain, casting, wrong = (
            upcast_in_place(m)(x.double()) for m in (Norm(1e-6, False), Norm(1e-6, True), Norm(1e-4, True))
        )
    assert torch.allclose(plain, casting, rtol=1e-13, atol=0)
    assert float((wrong - plain).norm() / plain.norm()) > 1e-5


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_random_numbers_stay_those_of_the_deployed_dtype(draw):
    plain = draw(5, 7, generator=torch.Generator().manual_seed(3))
    with keep_double():
        wide = draw(5, 7, generator=torch.Generator().manual_seed(3))
        half = draw(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.bfloat16)
    assert wide.dtype == half.dtype == torch.float64
    assert torch.equal(wide, plain.double())
    assert torch.equal(half, draw(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.bfloat16).double())


def test_random_numbers_drawn_in_place_too():
    plain = torch.empty(6, 6).normal_(generator=torch.Generator().manual_seed(3))
    with keep_double():
        wide = torch.empty(6, 6).normal_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(wide, plain.double())
