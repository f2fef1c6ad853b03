"""3-axis rotary position embedding over adjacent pairs, tables in complex128 (spec A5).

Precision: angles float64, tables complex128, multiplication in complex128, result float32.
"""

import torch
from einops import rearrange
from torch import Tensor

POSITIONS = 1024  # rows of every table
BASE = 10000.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Split a head into the real widths of the time, height and width axes.

    Height and width get `2⌊D/6⌋`, time the rest: 128 -> 44, 42, 42.
    """
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def axis_table(width: int, positions: int = POSITIONS) -> Tensor:
    """`exp(i·p·θ_j)`, `θ_j = 10000^(−2j/width)`: complex128 `(positions, width/2)`."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    theta = 1.0 / torch.pow(torch.tensor(BASE, dtype=torch.float64, device="cpu"), exponents)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64, device="cpu"), theta)
    return torch.polar(torch.ones_like(angles), angles)


def table(head_dim: int, positions: int = POSITIONS) -> Tensor:
    """Concatenate the tables of the three axes: complex128 `(positions, head_dim/2)`, on the CPU."""
    return torch.cat([axis_table(width, positions) for width in axis_widths(head_dim)], dim=1)


def grid_frequencies(freqs: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Multiplier of every token (f, h, w) of one sample, w fastest: complex128 `(f·h·w, head_dim/2)`.

    Positions start at 0 for every sample.
    """
    pairs = freqs.shape[1]
    time, height, width = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
    f, h, w = grid
    parts = (
        time[:f, None, None].expand(f, h, w, -1),
        height[None, :h, None].expand(f, h, w, -1),
        width[None, None, :w].expand(f, h, w, -1),
    )
    return rearrange(torch.cat(parts, dim=-1), "f h w c -> (f h w) c")


def rotate(x: Tensor, multiplier: Tensor) -> Tensor:
    """Rotate adjacent pairs of every head: `(n, heads, D)` by complex128 `(n, D/2)` -> float64 `(n, heads, D)`."""
    pairs = torch.view_as_complex(rearrange(x.to(torch.float64), "n h (c two) -> n h c two", two=2).contiguous())
    return torch.view_as_real(pairs * multiplier[:, None]).flatten(2)


def apply(x: Tensor, grid_sizes: Tensor, freqs: Tensor) -> Tensor:
    """Rotate a padded batch, `(b, s, heads, D)` -> float32 of the same shape.

    `grid_sizes` is int64 `(b, 3)`; rows beyond f·h·w are copied unrotated; every head uses the same table.
    """
    out = []
    for sample, grid in zip(x, grid_sizes.tolist(), strict=True):
        n = grid[0] * grid[1] * grid[2]
        rotated = rotate(sample[:n], grid_frequencies(freqs, tuple(grid)))
        out.append(torch.cat([rotated, sample[n:]]))
    return torch.stack(out).float()
