"""What refuses float64 does not end isolation: float32 stands in, then only the code that refuses is left out; and the result says so."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import parity
from parity.errors import caught, collecting
from parity.report.text import failure_message
from parity.report.wording import lost_isolation
from parity.result import Coverage, Result

FLOAT32, HALF = ("torch.bfloat16", "torch.float32"), ("torch.bfloat16",)


def kernel(x: Tensor, only: Sequence[str]) -> Tensor:
    """Stand for compiled code that takes some dtypes alone."""
    if str(x.dtype) not in only:
        raise RuntimeError(f'"kernel" is not implemented for {x.dtype}')
    return functional.silu(x)


class Gate(nn.Module):
    def __init__(self, only: Sequence[str]) -> None:
        super().__init__()
        self.only = only

    def forward(self, x: Tensor) -> Tensor:
        return kernel(x, self.only)


class Block(nn.Module):
    """The kernel in a module of its own, or in the block's own code."""

    def __init__(self, only: Sequence[str], eps: float, inline: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16, eps=eps), nn.Linear(16, 32), nn.Linear(32, 16)
        self.gate = nn.Identity() if inline else Gate(only)
        self.only, self.inline = only, inline

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        return x + self.down(kernel(h, self.only) if self.inline else self.gate(h))


def net(only: Sequence[str], inline: bool, eps: float = 1e-6) -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(only, eps, inline) for _ in range(2)]
    return nn.Sequential(nn.Linear(16, 16), *blocks, nn.Linear(16, 16)).to(torch.bfloat16)


def checked(port: nn.Module, only: Sequence[str], inline: bool) -> Result:
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return parity.check(net(only, inline), port, (x,))


@pytest.mark.parametrize("inline", [False, True], ids=["module", "inline"])
@pytest.mark.parametrize("only", [FLOAT32, HALF], ids=["float32", "half"])
def test_a_quiet_fault_beside_a_kernel_that_refuses_float64(only: Sequence[str], inline: bool) -> None:
    result = checked(net(only, inline, eps=1e-3), only, inline)
    assert (result.verdict, result.first.site, result.first.tier) == ("diverged", "1.norm", "isolation")
    assert any("eps" in cause.text and "0.001" in cause.text for cause in result.causes)
    assert result.isolation["level"] == ("full" if only == FLOAT32 else "partial")
    assert "is not implemented" in result.isolation["reason"]


@pytest.mark.parametrize("inline", [False, True], ids=["module", "inline"])
@pytest.mark.parametrize("only", [FLOAT32, HALF], ids=["float32", "half"])
def test_the_twin_matches_and_says_what_was_left_out(only: Sequence[str], inline: bool) -> None:
    twin = checked(net(only, inline), only, inline)
    assert twin.verdict == "match"
    assert bool(twin.isolation["sites"]) == (only == HALF)
    assert ("1.gate" if not inline else "1") in twin.isolation["sites"] or only == FLOAT32
    assert json.loads(json.dumps(twin.to_json()))["isolation"]["level"] == twin.isolation["level"]


def test_another_implementation_of_the_kernel_is_right() -> None:
    """The port's runs in float64, the reference's does not: what lies between is that rounding."""
    everywhere = (*FLOAT32, "torch.float64")
    assert checked(net(everywhere, False), HALF, False).verdict == "match"


def test_what_was_left_out_is_shown_with_the_verdict() -> None:
    lost = {"level": "partial", "reason": "port: gate cannot run in float64", "sites": ["gate"], "count": 1}
    result = Result("match", None, None, (), Coverage(1, 1, 1), isolation=lost)
    assert "partial, 1 sites not judged alone: port: gate" in lost_isolation(result)
    assert "isolation partial" in failure_message(result)
    assert lost_isolation(Result("match", None, None, (), Coverage(1, 1, 1))) == ""


def test_a_model_that_cannot_run_in_float64_at_all_says_none() -> None:
    class Odd(nn.Linear):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            return self

    odd = Odd(4, 4)
    result = parity.check(odd, copy.copy(odd), (torch.randn(2, 4),))
    assert result.isolation["level"] == "none"
    assert result.caught
    assert set(result.caught) <= set(result.notes)


def test_what_is_caught_is_listed_once() -> None:
    with collecting() as found:
        for _ in range(2):
            caught("the hypothesis scale", ValueError("odd\nmore"))
    caught("outside", ValueError("nobody listens"))
    assert found == ["the hypothesis scale: ValueError: odd"]
