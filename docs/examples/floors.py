"""Floors by example: a bf16 block, a right port with other arithmetic, and two bugs, one above the noise and one below."""

import copy

import torch
from torch import nn
from torch.nn import functional

import parity


class Block(nn.Module):
    """A normalised feed-forward with a residual, in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64, eps=1e-6)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class SplitSum(nn.Linear):
    """The same projection, added up in two halves: right, but with other roundings."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.in_features // 2
        first = functional.linear(x[..., :n], self.weight[:, :n])
        return first + functional.linear(x[..., n:], self.weight[:, n:], self.bias)


def show(title: str, port: nn.Module) -> None:
    result = parity.check(reference, port, (x,))
    print(f"{title}: {result.verdict}")
    print(f"  {'site':14}{'error':>9}{'floor':>9}{'alone, in float64':>20}")
    for row in result.rows:
        if row.kind == "activation":
            mark = "  <-- over" if row.diverged else "  <-- over the limit 2e-06" if row.isolated > 2e-6 else ""
            print(f"  {row.site:14}{row.error:9.1e}{row.floor:9.1e}{row.isolated:20.1e}{mark}")


torch.manual_seed(0)
reference = nn.Sequential(Block(), Block()).bfloat16()
x = torch.randn(2, 9, 64).bfloat16()

right = copy.deepcopy(reference)
for block in right:
    block.up.__class__ = block.down.__class__ = SplitSum
show("sums in two halves", right)

loud = copy.deepcopy(reference)
loud[1].act = nn.SiLU()
show("SiLU for GELU", loud)

quiet = copy.deepcopy(reference)
quiet[0].norm.eps = 1e-5
quiet[1].act = nn.GELU()
show("eps 1e-5 for 1e-6, and erf for tanh GELU", quiet)
