"""Alignment by example: one block written by two authors, and a port that leaves something out."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import parity


class Official(nn.Module):
    """Three projections, heads split by a view, a feed-forward as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.ffn = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (4, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


class Mixer(nn.Module):
    """Another author's attention: one fused projection, softmax by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).reshape(*h.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(h.shape))


class Mine(nn.Module):
    """The same block under other names, in another tree."""

    def __init__(self, official: Official) -> None:
        super().__init__()
        self.ln_a, self.ln_b, self.mixer = nn.LayerNorm(32), nn.LayerNorm(32), Mixer()
        self.fc_in, self.fc_out = nn.Linear(32, 64), nn.Linear(64, 32)
        projections = (official.q, official.k, official.v)
        with torch.no_grad():
            self.mixer.qkv.weight.copy_(torch.cat([p.weight for p in projections]))
            self.mixer.qkv.bias.copy_(torch.cat([p.bias for p in projections]))
        pairs = (
            (self.mixer.out, official.o), (self.fc_in, official.ffn[0]), (self.fc_out, official.ffn[2]),
            (self.ln_a, official.norm1), (self.ln_b, official.norm2),
        )  # fmt: skip
        for own, theirs in pairs:
            own.load_state_dict(theirs.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.ln_a(x))
        return x + self.fc_out(functional.gelu(self.fc_in(self.ln_b(x))))


class Forgetful(Mine):
    """The second norm is there, with its weights, and is never called."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.ln_a(x))
        return x + self.fc_out(functional.gelu(self.fc_in(x)))


def show(title: str, result: parity.Result) -> None:
    print(f"{title}: {result.verdict}")
    for row in result.rows:
        print(f"  {row.site:14} <- {row.port or row.site:14} by {row.how}")
    print(f"  {result.coverage.compared} of {result.coverage.reference} compared")
    print(f"  alone in the reference: {', '.join(result.coverage.unaligned_reference) or 'nothing'}")
    print(f"  alone in the port: {', '.join(result.coverage.unaligned_port) or 'nothing'}")
    if result.culprit:
        print(f"  culprit: {result.culprit.module}, {result.causes[0].text if result.causes else 'unexplained'}")


torch.manual_seed(0)
official = Official()
with torch.no_grad():
    for norm in (official.norm1, official.norm2):
        norm.weight.add_(0.1 * torch.randn(32))
        norm.bias.add_(0.1 * torch.randn(32))
x = torch.randn(2, 7, 32)
show("mine", parity.check(official, Mine(official), (x,)))
show("without its second norm", parity.check(official, Forgetful(official), (x,)))
