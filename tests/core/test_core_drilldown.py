"""Drill-down: the first operation without a match, on the line where it stands; what is only written differently is not blamed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from core_models import noise
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

import parity
from parity.capture.operations import OpLog, WindowsClosed
from parity.locate.operation import compact, describe_op, find_departure
from parity.trace import Record

WEIGHT = noise(8, 8, seed=7).double() / 3


def log(function: Callable[..., Tensor], *args: Tensor):
    """Run a function with its operations logged; return the steps and the result."""
    record = Record("end", {}, "activation", 0, (), "float64")
    oplog = OpLog({"end": None})
    with torch.no_grad(), oplog:
        result = function(*args)
        with pytest.raises(WindowsClosed):
            oplog.watch(record)
    return oplog.windows["end"], result


def departure(reference: Callable[..., Tensor], port: Callable[..., Tensor], *args: Tensor):
    ref_steps, _ = log(reference, *args)
    port_steps, result = log(port, *args)
    return find_departure(ref_steps, port_steps, result)


def line_of(function: Callable, marker: str) -> str:
    """Return file:line of the line of `function` that carries a marker comment."""
    lines, start = inspect.getsourcelines(function)
    place = next(i for i, text in enumerate(lines) if marker in text)
    return f"{inspect.getsourcefile(function)}:{start + place}"


X = noise(2, 5, 8, seed=1).double()


def mlp(x):
    y = x @ WEIGHT
    y = y * 0.5
    y = gelu(y)
    return x + y


def test_an_operation_that_was_replaced():
    def port(x):
        y = x @ WEIGHT
        y = y * 0.5
        y = silu(y)  # here
        return x + y

    found = departure(mlp, port, X)
    assert (found.port.name, found.reference.name) == ("silu", "gelu")
    assert found.port.source == line_of(port, "# here")
    assert found.port.code == "y = silu(y)  # here"
    assert found.reference.source == line_of(mlp, "gelu(y)")


def test_an_operation_that_was_dropped():
    def port(x):
        y = x @ WEIGHT
        y = gelu(y)  # here
        return x + y

    found = departure(mlp, port, X)
    assert (found.port.name, found.reference.name) == ("gelu", "mul")
    assert found.reference.source == line_of(mlp, "* 0.5")
    assert found.port.source == line_of(port, "# here")


def test_a_last_operation_that_was_dropped():
    def port(x):
        return gelu((x @ WEIGHT) * 0.5)

    found = departure(mlp, port, X)
    assert found.port is None
    assert found.reference.name == "add"
    assert found.detail.startswith("the port has no counterpart of add(f64[2,5,8]")


def test_an_operation_too_many():
    def port(x):
        y = x @ WEIGHT
        y = y * 0.5
        y = y.clamp(-0.1, 0.1)  # here
        y = gelu(y)
        return x + y

    found = departure(mlp, port, X)
    assert found.port.name == "clamp"
    assert found.port.source == line_of(port, "# here")
    assert found.port.scalars["min"] == -0.1


def test_the_same_operation_with_another_scalar():
    def norm(eps: float):
        def run(x):
            y = x @ WEIGHT
            return layer_norm(y, (8,), eps=eps)  # here

        return run

    found = departure(norm(1e-6), norm(1e-3), X)
    assert (found.port.name, found.reference.name) == ("native_layer_norm", "native_layer_norm")
    assert (found.port.scalars["eps"], found.reference.scalars["eps"]) == (1e-3, 1e-6)
    assert found.port.source == line_of(norm(1.0), "# here")
    assert "eps=0.001" in describe_op(found.port)


def decomposed_attention(scale: float | None = None, soft: Callable = torch.softmax):
    def run(q, k, v):
        scores = q @ k.transpose(-1, -2)
        scores = scores * (scale or q.shape[-1] ** -0.5)  # scale
        return soft(scores, dim=-1) @ v

    return run


QKV = tuple(noise(1, 2, 6, 8, seed=s).double() for s in (2, 3, 4))


def test_attention_written_out_is_not_blamed_when_it_is_right():
    """Other operations, same numbers at the end: what departs is the projection that follows."""

    def reference(q, k, v):
        out = scaled_dot_product_attention(q, k, v)
        return (out @ WEIGHT) * 2.0

    def port(q, k, v):
        out = decomposed_attention()(q, k, v)
        return (out @ WEIGHT) * 3.0  # here

    found = departure(reference, port, *QKV)
    assert (found.port.name, found.port.scalars.get("other"), found.reference.name) == ("mul", 3.0, "mul")
    assert found.port.source == line_of(port, "# here")
    assert found.port.inputs[0].shape == (1, 2, 6, 8)


def test_attention_written_out_wrongly_is_blamed():
    port = decomposed_attention(scale=1 / 8)
    found = departure(scaled_dot_product_attention, port, *QKV)
    assert found.port.source.rpartition(":")[0] == inspect.getsourcefile(port)
    assert found.reference.name == "scaled_dot_product_attention"


def test_layouts_and_rounding_are_no_departure():
    """The same numbers transposed, reshaped, cut up, or with noise of the last digits are known values."""

    def reference(x):
        return gelu(x @ WEIGHT) * 0.5

    def port(x):
        y = (x.transpose(0, 1).reshape(-1, 8) @ WEIGHT).reshape(5, 2, 8).transpose(0, 1)
        parts = [gelu(part) for part in (y * (1 + 1e-12)).split(1, dim=1)]
        return torch.cat(parts, dim=1) * 0.7  # here

    found = departure(reference, port, X)
    assert found.port.source == line_of(port, "# here")
    assert found.port.name == "mul"


def test_equal_functions_have_no_departure():
    found = departure(mlp, mlp, X)
    assert (found.port, found.reference) == (None, None)


def test_what_does_not_lead_to_the_value_is_not_blamed():
    """A side computation that the reference does not have, before the real fault."""

    def port(x):
        statistics = (x * 3.7).sin().mean()  # bookkeeping
        y = x @ WEIGHT
        y = y * 0.6  # here
        y = gelu(y)
        _ = statistics
        return x + y

    found = departure(mlp, port, X)
    assert found.port.source == line_of(port, "# here")


def test_windows_open_after_their_start_and_close_at_their_end():
    first, second = (Record(s, {}, "activation", i, (), "float64") for i, s in enumerate("ab"))
    oplog = OpLog({"b": "a"})
    with torch.no_grad(), oplog:
        _ = X * 2
        oplog.watch(first)
        _ = (X * 3) + 1
        with pytest.raises(WindowsClosed):
            oplog.watch(second)
    names = [step.op.name for step in oplog.windows["b"]]
    assert names == ["mul", "add"]
    assert [step.makers for step in oplog.windows["b"]] == [(None,), (0,)]


def test_logged_values_are_as_they_were():
    """An operation in place afterwards does not change what was logged."""

    def run(x):
        y = x * 2
        y.add_(5)
        return y

    steps, _ = log(run, X)
    assert torch.equal(steps[0].op.outputs[0], X * 2)
    assert steps[1].op.name == "add"
    assert torch.equal(steps[1].op.inputs[0], X * 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (noise(2, 3), "f32[2,3]"),
        (torch.ones(()), "f32[]"),
        (torch.ones(1).bfloat16(), "bf16[1]"),
        (torch.ones(2, dtype=torch.bool), "bool[2]"),
        (torch.ones(2, dtype=torch.uint8), "uint8[2]"),
    ],
)
def test_tensors_in_compact_form(value, text):
    assert compact(value) == text


# -- on models, through all stages ------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention with the backend and the scale to choose."""

    def __init__(self, fused: bool = True, scale: float | None = None, scores=math.sqrt) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fused, self.scale, self.scores = fused, scale, scores

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if self.fused:
            y = scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) / self.scores(4), dim=-1) @ v  # written out
        return self.out(y.transpose(1, 2).flatten(2))


def models(**port) -> tuple[nn.Module, nn.Module]:
    reference, other = Attention(), Attention(**port)
    with torch.no_grad():
        for i, p in enumerate(reference.parameters()):
            p.copy_(noise(*p.shape, seed=i) / 2)
    other.load_state_dict(reference.state_dict())
    return reference, other


def test_a_model_with_its_attention_written_out_matches():
    result = parity.check(*models(fused=False), (noise(2, 6, 8),))
    assert (result.verdict, result.culprit) == ("match", None)


@pytest.mark.parametrize("fused", [True, False])
def test_a_wrong_scale_is_found_on_its_line(fused):
    options = {"scale": 0.25} if fused else {"fused": False, "scores": lambda d: d}
    result = parity.check(*models(**options), (noise(2, 6, 8),))
    marker = "scaled_dot_product_attention(q" if fused else "# written out"
    assert result.verdict == "diverged"
    assert result.culprit.module == "model"
    assert result.culprit.source.rpartition(":")[2] == line_of(Attention.forward, marker).rpartition(":")[2]
    assert marker in result.culprit.code
    assert "reference: scaled_dot_product_attention(" in result.culprit.detail
