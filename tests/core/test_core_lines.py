"""Which source line is named: the port's own code, not what both sides run; also where nothing was computed, or a call is missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from core_models import noise
from torch import Tensor, nn

import parity
from parity.capture.operations import Frame, own_frame
from parity.case import Expectation
from parity.lab.gauntlet import score_fault
from parity.result import Coverage, Culprit, Divergence, Result

X = noise(3, 8, seed=1)


def scaled(x: Tensor, by: float) -> Tensor:
    return x * by


class Right(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm, self.act = nn.Linear(8, 8), nn.LayerNorm(8), Double()

    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.act(self.norm(self.lin(x))), 2.0)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Unchanged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # returned as it is
        return x


class OtherArgument(Right):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.act(self.norm(self.lin(x))), 3.0)  # another argument


class Twice(Right):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.lin(x))
        h = self.norm(h)  # once more
        return scaled(self.act(h), 2.0)


class Left(Right):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.act(self.lin(x)), 2.0)  # without the norm


class Reversed(Right):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.act(self.norm(self.lin(x))), 2.0).flip(-1)  # the same numbers


def line_of(function: Callable, marker: str) -> str:
    lines, start = inspect.getsourcelines(function)
    return f"{start + next(i for i, text in enumerate(lines) if marker in text)}"


def culprit_of(port: Right) -> Culprit:
    torch.manual_seed(0)
    reference = Right()
    port.load_state_dict(reference.state_dict())
    result = parity.check(reference, port, (X,))
    assert result.verdict == "diverged"
    assert result.culprit is not None
    return result.culprit


@pytest.mark.parametrize(
    ("kind", "marker"),
    [
        (OtherArgument, "# another argument"),
        (Twice, "# once more"),
        (Left, "# without the norm"),
        (Reversed, "# the same"),
    ],
)
def test_the_line_is_in_the_ports_own_code(kind, marker):
    found = culprit_of(kind())
    assert found.source is not None
    assert found.source.rpartition(":")[2] == line_of(kind.forward, marker)
    assert marker in (found.code or "")


def test_what_both_run_is_named_as_where_it_was_computed():
    assert "return x * by" in culprit_of(OtherArgument()).detail


def test_a_function_that_returns_its_argument_is_named_where_it_begins():
    port = Right()
    port.act = Unchanged()
    found = culprit_of(port)
    assert found.source.rpartition(":")[2] == line_of(Unchanged.forward, "# returned as it is")


def test_the_innermost_call_that_the_other_side_does_not_run():
    inner, outer = Frame("a.py:3", "x * by", "a.py:1"), Frame("b.py:9", "scaled(x, 3)", "b.py:5")
    assert own_frame((inner, outer), {"a.py:1"}) is outer
    assert own_frame((inner, outer), set()) is inner
    assert own_frame((inner, outer), {"a.py:1", "b.py:5"}) is None


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("ported/a.py:12", True),
        ("ported/a.py:9", False),
        ("ported/a.py:21", False),
        ("ported/b.py:12", False),
        (None, False),
    ],
)
def test_a_line_counts_when_it_is_where_the_fault_says(source, right):
    first = Divergence("x", {}, "activation", "rel_l2", 1.0, 0.0, 0)
    culprit = Culprit("m", site="x", source=source)
    result = Result("diverged", first, culprit, (), Coverage(1, 1, 1))
    assert score_fault("s", "f", Expectation("x", lines="ported/a.py:10-20"), result).line == right
    assert score_fault("s", "f", Expectation("x", lines="other.py:1-2 ported/a.py:10-20"), result).line == right
    assert not score_fault("s", "f", Expectation("x"), result).line
