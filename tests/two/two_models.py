"""A small attention block, and ports of it with one defect each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Norm, attention of two heads, norm, GELU between two projections."""

    def __init__(self, width: int = 8, defect: str = "") -> None:
        super().__init__()
        self.defect = defect
        self.norm = nn.LayerNorm(width, eps=1e-3 if defect == "eps" else 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * ((c if self.defect == "scale" else c // 2) ** -0.5)
        if self.defect != "mask":
            scores = scores + mask
        heads = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        x = x + self.out(heads)
        return x + self.down(F.gelu(self.up(x), approximate="tanh" if self.defect == "gelu" else "none"))


class Model(nn.Module):
    """Two blocks; the second one has the defect."""

    def __init__(self, defect: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block(defect=defect)])
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class Renamed(nn.Module):
    """The same under other names, with the projection in three: a right port, but for the defect."""

    def __init__(self, defect: str = "") -> None:
        super().__init__()
        self.layers = Model(defect).blocks

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](hidden, bias), bias)


def inputs() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 8, generator=drawn), torch.full((5, 5), -1e9).triu(1)
