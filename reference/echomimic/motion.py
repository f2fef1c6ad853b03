"""Motion modules: attention over the frames of a window (spec 5)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import MOTION_GROUPS
from .layers import Attention, FeedForward, GroupNorm, from_rows, to_rows

MOTION_EPS = 1e-6


def position_table(length: int, dim: int) -> Tensor:
    """`pe[p, 2k] = sin(p·ω_k)`, `pe[p, 2k+1] = cos(p·ω_k)`, `ω_k = e^(−2k·ln(10000)/dim)`: (1, length, dim)."""
    position = torch.arange(length)[:, None]
    omega = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    table = torch.zeros(1, length, dim)
    table[0, :, 0::2] = torch.sin(position * omega)
    table[0, :, 1::2] = torch.cos(position * omega)
    return table


class PositionalEncoding(nn.Module):
    """Add the table's first rows: positions count from the beginning of the window, whatever frames it holds."""

    def __init__(self, dim: int, max_len: int) -> None:
        super().__init__()
        self.register_buffer("pe", position_table(max_len, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(n, f, c) -> (n, f, c). Errors: ValueError for more frames than the table has rows."""
        if x.shape[1] > self.pe.shape[1]:
            raise ValueError(f"a window of {x.shape[1]} frames is longer than the {self.pe.shape[1]} known positions")
        return x + self.pe[:, : x.shape[1]]


class TemporalAttention(Attention):
    """Self attention over the frames at each position; the encoding reaches q, k and v, not the residual stream."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__(dim, heads)
        self.pos_encoder = PositionalEncoding(dim, max_len)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """(b·f, s, c) -> (b·f, s, c)."""
        s = x.shape[1]
        z = self.pos_encoder(rearrange(x, "(b f) s c -> (b s) f c", f=frames))
        return rearrange(super().forward(z, z), "(b s) f c -> (b f) s c", s=s)


class TemporalBlock(nn.Module):
    """Two temporal attentions and a feed-forward, each behind its norm."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(dim, heads, max_len) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        self.ff = FeedForward(dim)
        self.ff_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = attention(norm(x), frames) + x
        return self.ff(self.ff_norm(x)) + x


class TemporalTransformer(nn.Module):
    """GroupNorm per frame, Linear, one block, Linear, + input; `proj_out` is zero until weights are loaded."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.norm = GroupNorm(MOTION_GROUPS, dim, MOTION_EPS)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(dim, heads, max_len)])
        self.proj_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, f, h, w)
        rows = to_rows(x)
        h, w = x.shape[-2:]
        tokens = self.proj_in(rearrange(self.norm(rows), "n c h w -> n (h w) c"))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, x.shape[2]))
        return from_rows(rearrange(tokens, "n (h w) c -> n c h w", h=h, w=w), x) + x


class MotionModule(nn.Module):
    """The module as the checkpoint names it: one temporal transformer."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(dim, heads, max_len)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal_transformer(x)
