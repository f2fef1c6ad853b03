"""Constants first: another checkpoint is found whatever the noise of the dtype, and weights that are rightly computed are left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import parity
from parity.compare.static import changed_weights
from parity.result import Result

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def net(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), Block(width), Block(width), nn.Linear(width, width)).eval()


def noisy(model: nn.Module, deviation: float) -> nn.Module:
    """Return a copy as another checkpoint of the same training: noise on every matrix, a share of its deviation."""
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in other.parameters():
            if value.dim() > 1:
                value += deviation * value.std() * torch.randn(value.shape, generator=draw)
    return other


def both(reference: nn.Module, port: nn.Module, dtype: torch.dtype) -> tuple[Result, Result]:
    """Return what the two models give when they run, and what their traces give."""
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    models = [copy.deepcopy(model).to(dtype) for model in (reference, port)]
    return parity.check(*models, (x,)), parity.compare(*(parity.capture(model, (x,)) for model in models))


@pytest.mark.parametrize("deviation", [3e-4, 5e-3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_checkpoint_is_found_and_named(dtype: torch.dtype, deviation: float) -> None:
    reference = net()
    for result in both(reference, noisy(reference, deviation), dtype):
        assert result.verdict == "diverged"
        static = [d for d in result.divergences if d.tier == "static"]
        assert {d.site for d in static} == {n for n, p in reference.named_parameters() if p.dim() > 1}
        assert any(c.class_id == "W13" and "another checkpoint" in c.text for c in result.causes)


def test_half_precision_cannot_excuse_it() -> None:
    """As deployed no activation is over its floor: the weights alone say it, at the first of them."""
    reference = net()
    for result in both(reference, noisy(reference, 3e-4), torch.bfloat16):
        assert (result.first.site, result.first.tier, result.causes[0].class_id) == ("0.weight", "static", "W13")
        assert "of its deviation" in result.first.detail
        assert not [d for d in result.divergences if d.tier != "static"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twin_matches(dtype: torch.dtype) -> None:
    reference = net()
    assert [r.verdict for r in both(reference, copy.deepcopy(reference), dtype)] == ["match", "match"]


# -- weights as such --------------------------------------------------------------------------------------------------


def matrix(rows: int = 32, columns: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def low_rank(w: Tensor) -> Tensor:
    return w + 1e-2 * matrix(w.shape[0], 2, 3) @ matrix(2, w.shape[1], 4)


def gains(n: int, spread: float = 0.03) -> Tensor:
    return 1 + spread * matrix(n, 1, 6)


def eight_bits(w: Tensor) -> Tensor:
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).round() * step


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda w: w.T.contiguous(),
    "rows in another order": lambda w: w[torch.randperm(len(w), generator=torch.Generator().manual_seed(2))],
    "as a convolution": lambda w: w[:, :, None, None],
    "rounded to bf16": lambda w: w.to(torch.bfloat16),
    "rounded to fp16": lambda w: w.to(torch.float16),
    "gains folded into rows": lambda w: gains(len(w)) * w,
    "gains folded into columns": lambda w: w * gains(w.shape[1]).T,
    "an update of low rank merged": low_rank,
    "eight bits a row": eight_bits,
    "computed in float32 on another way": lambda w: (w.double() / 3).float() * 3,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_weight_that_is_rightly_another_is_left_alone(name: str) -> None:
    w, v = matrix(), matrix(seed=9)
    assert changed_weights({"a.weight": w, "b.weight": v}, {"x.weight": RIGHT[name](w), "b.weight": v}) == []
    almost = RIGHT[name](w + 1e-3 * matrix(seed=7))
    wide = w.to(torch.float64).to(almost.dtype) if name.startswith("rounded") else w
    found = changed_weights({"a.weight": wide, "b.weight": v}, {"x.weight": almost, "b.weight": v})
    if name != "rows in another order":  # which cannot be told from another weight then
        assert [(c.reference, c.port) for c in found] == [("a.weight", "x.weight")]


def test_one_rounding_and_no_more() -> None:
    w = matrix()
    once, twice = w.to(torch.bfloat16), w.to(torch.float16).mul(1 + 2**-10).to(torch.bfloat16)
    assert changed_weights({"w": w}, {"w": once}) == []
    assert [c.reference for c in changed_weights({"w": w}, {"w": twice})] == ["w"]


def test_what_is_computed_from_its_neighbours_is_no_bug() -> None:
    """A weight kept as direction and length, or beside an adapter: the other side holds neither, and its own is near."""
    w = matrix()
    refs = {"conv.weight_v": w, "conv.weight_g": matrix(64, 1, 3), "other.weight": matrix(seed=4)}
    ports = {"conv.weight": w + 1e-3 * matrix(seed=5), "other.weight": matrix(seed=4)}
    assert changed_weights(refs, ports) == []
    assert len(changed_weights({"conv.weight": w, "other.weight": matrix(seed=4)}, ports)) == 1


def test_two_weights_that_only_look_alike_are_none() -> None:
    """Equal shapes and statistics prove nothing; a few elements prove nothing."""
    assert changed_weights({"a": matrix(seed=1)}, {"b": matrix(seed=2)}) == []
    assert changed_weights({"a": torch.ones(4)}, {"a": torch.ones(4) * 1.001}) == []


def test_descriptors_of_a_trace_say_the_same() -> None:
    from parity.capture.parameters import describe_parameters

    reference = net()
    mine = describe_parameters(reference)
    assert changed_weights(mine, describe_parameters(copy.deepcopy(reference))) == []
    assert changed_weights(mine, describe_parameters(copy.deepcopy(reference).to(torch.bfloat16))) == []
    found = changed_weights(mine, describe_parameters(noisy(reference, 3e-4).to(torch.bfloat16)))
    assert len(found) == 6
    assert all(1e-4 < c.error < 1e-2 for c in found)
