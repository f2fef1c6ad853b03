"""Pre-norm transformer whose norms are modulated by a condition vector (spec 8.1), and its sinusoidal positions.

Precision: everything in the dtype of the weights; no float32 islands.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

BASE = 10000.0


class Attention(nn.Module):
    """Multi-head self attention with a packed input projection: `(b, l, d)` -> `(b, l, d)`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(packed, "b l (three h d) -> three b h l d", three=3, h=self.heads)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out_proj(rearrange(weights @ v, "b h l d -> b l (h d)"))


class Layer(nn.Module):
    """One layer; `cond_dim` None leaves the modulation out."""

    def __init__(self, dim: int, heads: int, ff_dim: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.ff = nn.Sequential(nn.Linear(dim, ff_dim), nn.SiLU(), nn.Linear(ff_dim, dim))
        self.film1 = None if cond_dim is None else nn.Linear(cond_dim, 2 * dim)
        self.film2 = None if cond_dim is None else nn.Linear(cond_dim, 2 * dim)

    def forward(self, x: Tensor, cond: Tensor | None) -> Tensor:  # (b, l, d), (b, d_cond)
        x = x + self.attn(modulate(self.norm1(x), self.film1, cond))
        return x + self.ff(modulate(self.norm2(x), self.film2, cond))


def modulate(h: Tensor, film: nn.Linear | None, cond: Tensor | None) -> Tensor:
    """`h (1 + γ) + β` with (γ, β) from the condition, the same for all tokens."""
    if film is None or cond is None:
        return h
    gamma, beta = film(cond)[:, None].chunk(2, dim=-1)
    return h * (1 + gamma) + beta


class FilmTransformer(nn.Module):
    """A stack of layers without a final norm: `(b, l, d)` -> `(b, l, d)`."""

    def __init__(self, dim: int, layers: int, heads: int, ff_dim: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, ff_dim, cond_dim) for _ in range(layers))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, cond)
        return x


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """`[sin a, cos a]`, `a_i = position · 10000^(−i/half)`: `(n,)` -> `(n, dim)`, a zero column at the end if dim is odd."""
    half = dim // 2
    rates = torch.pow(torch.tensor(BASE), -torch.arange(half, device=positions.device).float() / max(half, 1))
    angles = positions.float()[:, None] * rates.to(positions.device)[None]
    return pad_features(torch.cat([angles.sin(), angles.cos()], dim=-1), dim)


def pad_features(x: Tensor, dim: int) -> Tensor:
    """Fill the last axis with zeros up to `dim`, or cut it."""
    missing = dim - x.shape[-1]
    if missing <= 0:
        return x[..., :dim]
    return torch.cat([x, x.new_zeros(*x.shape[:-1], missing)], dim=-1)


def unit_positions(count: int) -> Tensor:
    """0 .. 1 in equal steps, float32 `(count,)`; a single position is 0."""
    return torch.linspace(0, 1, count)
