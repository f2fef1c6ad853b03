"""Causes by example: one small rotary attention, ported in six other ways: one is right, one has no name."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import parity


class Attention(nn.Module):
    """Causal attention of eight query heads on two key heads, with rotary positions. The flags are mistakes that people make."""

    def __init__(
        self, halves: bool = False, start: tuple[int, int] = (0, 0), scale: float | None = None, tile: bool = False
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(64, 64), nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(64, 64)
        self.halves, self.start, self.scale, self.tile = halves, start, scale, tile

    def rotate(self, x: Tensor, start: int) -> Tensor:
        place = torch.arange(x.shape[2]) + start
        angle = place[:, None] * 10000.0 ** (-torch.arange(4) / 4)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        if self.halves:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)

    def share(self, x: Tensor) -> Tensor:
        return x.repeat(1, 4, 1, 1) if self.tile else x.repeat_interleave(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = self.rotate(q, self.start[0]), self.rotate(k, self.start[1])
        y = functional.scaled_dot_product_attention(q, self.share(k), self.share(v), is_causal=True, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


class Odd(Attention):
    """A mistake without a name."""

    def share(self, x: Tensor) -> Tensor:
        return super().share(torch.sin(1.3 * x) + 0.1 * x**2)


def show(title: str, port: Attention) -> None:
    port.load_state_dict(reference.state_dict())
    result = parity.check(reference, port, (x,))
    print(f"{title}: {result.verdict} at {result.first.site if result.first else 'no site'}")
    for cause in result.causes:
        print(f"  {cause.class_id} ({cause.confidence:.2f}, leaves {100 * cause.residual:.2f} %): {cause.text}")
    if result.first and not result.causes:
        print(f"  unexplained; the operation is {result.culprit.operation}, {', '.join(result.first.locality)}")


torch.manual_seed(0)
reference = Attention()
x = torch.randn(2, 9, 64)
show("pairs as halves", Attention(halves=True))
show("queries a place ahead", Attention(start=(1, 0)))
show("all positions from one", Attention(start=(1, 1)))
show("scale of the model", Attention(scale=64**-0.5))
show("heads tiled", Attention(tile=True))
show("something else", Odd())
