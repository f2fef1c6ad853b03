"""FiLM transformer on torch's attention, and its positions (spec 8.1). Everything in the dtype of the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FilmLayer(nn.Module):
    """LayerNorm – FiLM – attention, LayerNorm – FiLM – feed-forward; without `cond_dim` no FiLM."""

    def __init__(self, dim: int, heads: int, ff_dim: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, ff_dim), nn.SiLU(), nn.Linear(ff_dim, dim))
        if cond_dim is not None:
            self.film1 = nn.Linear(cond_dim, 2 * dim)
            self.film2 = nn.Linear(cond_dim, 2 * dim)
        self.modulated = cond_dim is not None

    def modulate(self, h: Tensor, film: nn.Module | None, cond: Tensor | None) -> Tensor:
        """`h (1 + γ) + β`."""
        if film is None or cond is None:
            return h
        gamma, beta = film(cond).unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(h + beta, h, gamma)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.modulate(self.norm1(x), self.film1 if self.modulated else None, cond)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.ff(self.modulate(self.norm2(x), self.film2 if self.modulated else None, cond))


class FilmTransformer(nn.Module):
    """Layers without a final norm."""

    def __init__(self, dim: int, layers: int, heads: int, ff_dim: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FilmLayer(dim, heads, ff_dim, cond_dim) for _ in range(layers))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, cond)
        return x


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """`[sin a, cos a]`, `a_i = position · 10000^(−i/half)`, float32: `(..., n)` -> `(..., n, dim)`, padded if odd."""
    half = dim // 2
    rates = 10000.0 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / max(half, 1))
    angles = positions.to(torch.float32).unsqueeze(-1) * rates
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=-1), (0, dim - 2 * half))


def frame_positions(frames: int, dim: int) -> Tensor:
    """Positions of frames in [0, 1]: `(t, dim)`."""
    return sinusoid(torch.linspace(0, 1, frames), dim)


def grid_features(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Features of a token grid from those of its rows `(r, a)` and columns `(c, b)`: `(r·c, dim)`."""
    r, c = len(rows), len(columns)
    both = torch.cat((rows[:, None].expand(r, c, -1), columns[None].expand(r, c, -1)), dim=-1).flatten(0, 1)
    return F.pad(both, (0, dim - both.shape[-1]))


def space_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Positions of tokens in [0, 1], half from the row, half from the column: `(n, dim)`."""
    half = dim // 2
    return grid_features(frame_positions(rows, half), frame_positions(columns, half), dim)
