"""Three-axis "ortho" rotary embedding (spec waypoint, section 4).

Angle bands of a token: [X (column) d/8 | Y (row) d/8 | T (frame) d/4], together d/2. Tables are float32 (no-cast); the
rotation runs in the table's dtype and returns the input's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from reference.waypoint.config import Config
from reference.waypoint.precision import NoCast


class PositionIds(NamedTuple):
    """Integer position of every token, each [B, T]: frame index, row, column of the token grid."""

    t: Tensor
    y: Tensor
    x: Tensor


def pixel_freqs(height: int, width: int, head_dim: int) -> Tensor:
    """Return the d/16 spatial frequencies shared by x and y: pi * linspace(1, 0.4 * min(height, width))."""
    return torch.linspace(1, 0.8 * min(height, width) / 2, head_dim // 16) * math.pi


def time_freqs(head_dim: int) -> Tensor:
    """Return the d/8 time frequencies 10000^(-2i / (d/4))."""
    dim = head_dim // 4
    return 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))


def axis_angles(positions: Tensor, freqs: Tensor) -> Tensor:
    """Multiply positions [n] by freqs [f]; every frequency is used twice in a row: [n, 2f]."""
    return repeat(torch.outer(positions, freqs), "n f -> n (f two)", two=2)


def ortho_angles(height: int, width: int, n_frames: int, head_dim: int) -> Tensor:
    """Return the angles [n_frames * height * width, d/2]; row t*(H*W) + y*W + x."""
    # Cell centres in [-1, 1] of the token grid; never multiplied by the patch size.
    pos_x = torch.linspace(-1 + 1 / width, 1 - 1 / width, width)
    pos_y = torch.linspace(-1 + 1 / height, 1 - 1 / height, height)
    spatial = pixel_freqs(height, width, head_dim)
    time = axis_angles(torch.arange(n_frames).float(), time_freqs(head_dim))
    bands = [
        repeat(axis_angles(pos_x, spatial), "w a -> (t h w) a", t=n_frames, h=height),
        repeat(axis_angles(pos_y, spatial), "h a -> (t h w) a", t=n_frames, w=width),
        repeat(time, "t a -> (t h w) a", h=height, w=width),
    ]
    return torch.cat(bands, dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ADJACENT pairs of the last axis; the result is de-interleaved: all first elements, then all second.

    x [..., T, d], cos and sin [..., T, d/2].
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class OrthoRope(NoCast):
    """Rotate queries or keys by their positions; one object serves all layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.height, self.width, self.n_frames = config.height, config.width, config.n_frames
        angles = ortho_angles(config.height, config.width, config.n_frames, config.head_dim)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rows(self, pos_ids: PositionIds) -> Tensor:
        """Return the table row of every token [B, T]; a position outside the grid or the table raises IndexError."""
        limits = {"t": self.n_frames, "y": self.height, "x": self.width}
        for axis, size in limits.items():
            ids = getattr(pos_ids, axis)
            if ids.min() < 0 or ids.max() >= size:
                raise IndexError(f"rotary position {axis} in [{ids.min()}, {ids.max()}] outside [0, {size})")
        return (pos_ids.t * self.height + pos_ids.y) * self.width + pos_ids.x

    def forward(self, x: Tensor, pos_ids: PositionIds) -> Tensor:
        """Rotate x [B, heads, T, d]; same shape and dtype back."""
        rows = self.rows(pos_ids)
        cos, sin = self.cos[rows].unsqueeze(1), self.sin[rows].unsqueeze(1)  # [B, 1, T, d/2]
        return rotate(x.to(cos.dtype), cos, sin).to(x.dtype)
