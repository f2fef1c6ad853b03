"""Modules paired by their weights: cut otherwise on the other side, and of equal content."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import parity
from parity.align.by_weights import match_weights

WIDTH = 16


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / max(1, p.shape[-1]) ** 0.5)
    return model


class Whole(nn.Module):
    """A block that holds its matrices itself: the norm is outside of the attention's input in no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.a, self.b, self.c = (nn.Parameter(torch.empty(WIDTH, WIDTH)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + functional.gelu(y @ self.a) * (y @ self.b) @ self.c


class Parts(nn.Module):
    """The same block, each matrix in a module."""

    def __init__(self, whole: Whole, factor: float = 1.0) -> None:
        super().__init__()
        self.norm, self.factor = whole.norm, factor
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        with torch.no_grad():
            for mine, theirs in zip((self.a, self.b, self.c), (whole.a, whole.b, whole.c), strict=True):
                mine.weight.copy_(theirs.T)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.c(functional.gelu(self.a(y)) * self.factor * self.b(y))


class Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module], last: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def wholes() -> list[Whole]:
    return [fill(Whole(), seed) for seed in (1, 2)]  # type: ignore[misc]


def test_no_part_is_taken_for_the_module_that_holds_them_all() -> None:
    blocks = wholes()
    found = match_weights(Stack(blocks), Stack([Parts(b) for b in blocks]))
    assert found.leaves == {"blocks.0.norm": "blocks.0.norm", "blocks.1.norm": "blocks.1.norm"}
    assert found.spread["blocks.0.c.weight"] == "blocks.0.c"


def test_a_fault_in_the_parts_is_found_behind_them() -> None:
    """Were the first part paired with the block, its input (after the norm) would be the first divergence."""
    blocks, x = wholes(), torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3))
    assert parity.check(Stack(blocks), Stack([Parts(b) for b in blocks]), (x,)).verdict == "match"
    result = parity.check(Stack(blocks), Stack([Parts(blocks[0]), Parts(blocks[1], 1.1)]), (x,))
    assert result.verdict == "diverged"
    assert result.first is not None
    assert result.first.site == "blocks.1"


def test_equal_weights_are_paired_as_elsewhere() -> None:
    """The last norm has the numbers of the blocks' norms; where one of these is changed it is not the last one's partner."""

    def norm() -> nn.LayerNorm:
        return fill(nn.LayerNorm(WIDTH), 7)  # type: ignore[return-value]

    def side(names: tuple[str, str]) -> Stack:
        made = []
        for seed in (1, 2):
            parts = [norm(), fill(nn.Linear(WIDTH, WIDTH), seed)]
            made.append(nn.Sequential())
            for name, part in zip(names, parts, strict=True):
                made[-1].add_module(name, part)
        return Stack(made, norm())

    reference, port = side(("norm", "lin")), side(("ln", "fc"))
    with torch.no_grad():
        port.blocks[1].ln.weight.add_(1.0)  # type: ignore[operator, union-attr]
        port.blocks[1].ln.bias.mul_(2.0)  # type: ignore[operator, union-attr]
    found = match_weights(reference, port)
    assert found.leaves["last"] == "last"
    assert found.leaves["blocks.0.ln"] == "blocks.0.norm"
