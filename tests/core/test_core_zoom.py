"""Zooming in: the operations of both sides that lead to one record, on request only."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import parity
from parity.errors import CaseError, ParityFailure
from parity.report.text import COLUMNS, failure_message


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 6)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.proj(x)) * self.scale
        return y.reshape(2, -1)


def two_models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    reference = Scaled(2.0)
    port = copy.deepcopy(reference)
    port.scale = 3.0
    return reference, port


X = (torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)),)


def test_the_operations_are_listed_with_what_departs() -> None:
    reference, port = two_models()
    result = parity.check(reference, port, X, zoom="first")
    assert result.first is not None
    head, *lines = result.operations
    assert head.startswith(f"operations up to {result.first.site}")
    assert [line.split("(")[0] for line in lines] == [
        "reference: 2 operations, 1 of them without a counterpart",
        "= tanh",
        "! mul",
        "port: 2 operations, 1 of them without a counterpart",
        "= tanh",
        "! mul",
    ]
    assert "other=3" in lines[-1]
    assert "test_core_zoom.py:23" in lines[-1]


def test_any_site_can_be_looked_at() -> None:
    reference, port = two_models()
    lines = parity.check(reference, port, X, zoom="proj").operations
    assert lines[0].startswith("operations up to proj,")
    assert not any(line.startswith("!") for line in lines)
    with pytest.raises(CaseError, match="no site 'nowhere'"):
        parity.check(reference, port, X, zoom="nowhere")


def test_nothing_is_listed_unasked() -> None:
    reference, port = two_models()
    assert parity.check(reference, port, X).operations == ()
    assert parity.check(reference, reference, X, zoom="first").operations == ()


def test_the_message_says_how_and_the_way_works() -> None:
    reference, port = two_models()
    with pytest.raises(ParityFailure) as caught:
        parity.assert_parity(reference, port, X)
    said = str(caught.value)
    assert "zoom in   parity.assert_parity(..., zoom='model') lists the operations there" in said
    with pytest.raises(ParityFailure, match=r"(?s)zoom in.*! mul\(f64\[2,4,6\], other=3\) at .*:23"):
        parity.assert_parity(reference, port, X, zoom="model")
    result = parity.check(reference, port, X, zoom="first")
    assert max(map(len, failure_message(result).splitlines())) <= 2 * COLUMNS
