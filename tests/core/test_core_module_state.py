"""What a module held while it ran is remembered when a fault is switched off after the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from core_models import noise, seeded
from torch import nn

from parity.capture.module_state import own_state, state_of, states_of
from parity.capture.probes import Modules
from parity.case import Case, Expectation, Fault, Setting, Side
from parity.pipeline import run_case


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.table = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4, eps=1e-5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.table(ids)) * self.scale


def test_states_of_a_tree() -> None:
    net = Net()
    states = states_of({"net.": net})
    assert set(states) == {"net.", "net.table", "net.norm"}
    assert set(states["net."].parameters) == {"scale", "table.weight", "norm.weight", "norm.bias"}
    assert states["net.norm"].settings["eps"] == 1e-5
    assert set(own_state(net).parameters) == {"scale"}


def test_an_exchanged_tensor_is_remembered() -> None:
    net = Net()
    net.table.weight.data, kept = torch.zeros(9, 4), net.table.weight.data
    held = state_of(net.table)
    net.table.weight.data = kept
    assert not held.parameters["weight"].any()
    assert net.table.weight.any()


@contextmanager
def zeroed(net: Net) -> Iterator[None]:
    kept = net.table.weight.data
    net.table.weight.data = torch.zeros_like(kept)
    try:
        yield
    finally:
        net.table.weight.data = kept


@contextmanager
def other_eps(net: Net) -> Iterator[None]:
    net.norm.eps = 1e-1
    try:
        yield
    finally:
        net.norm.eps = 1e-5


@pytest.mark.parametrize(("change", "class_id"), [(zeroed, "W2"), (other_eps, "N1")])
def test_a_fault_that_is_taken_back_is_still_read(change: Callable[[Net], object], class_id: str) -> None:
    side = Side(
        build=lambda setting: seeded(Net),
        run=lambda net, ids: net(ids),
        probes=lambda net: [Modules(net)],
        modules=lambda net: {"": net},
    )
    case = Case("system", "case", "", side, side, inputs=lambda setting: noise(2, 6).mul(4).abs().long())
    fault = Fault("f", "", change, Expectation("table"))
    result, _ = run_case(case, Setting(), fault=fault)
    assert result.causes[0].class_id == class_id, result.causes
    if change is other_eps:
        assert any(cause.class_id == "W12" for cause in result.causes)
