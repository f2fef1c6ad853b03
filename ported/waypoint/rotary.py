"""Three-axis rotary embedding of the Waypoint port (spec A4, B10).

Precision: angles and rotation in fp32, the rotated tensor is cast back to its own dtype. Angles come from integer
position ids by the closed formula; the option "rounded" takes them from tables rounded to bf16 at build time.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor, nn

from .config import PortOptions, WaypointConfig

Angles = tuple[Tensor, Tensor]


class Positions(TypedDict):
    """Where the tokens of one forward stand: int64 ids [B, T] per axis, and the frame index they all share."""

    t: Tensor
    y: Tensor
    x: Tensor
    frame_t: int


class Rotary(nn.Module):
    """Rotate q and k [B, T, heads, d] by their column, row and frame; one object serves all layers.

    The d/2 angles of a token are the bands [X | Y | T] of d/8, d/8 and d/4 entries, every frequency twice in a row.
    """

    table_x: Tensor | None
    table_y: Tensor | None
    table_t: Tensor | None

    def __init__(self, config: WaypointConfig, options: PortOptions) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.height, self.width, self.n_frames = config.height, config.width, config.n_frames
        self.linspace = options.rotary_positions == "linspace"
        self.interleaved_output = options.rotary_output == "interleaved"
        for axis in "xyt":
            self.register_buffer(f"table_{axis}", None, persistent=False)
        self.memo: tuple[Positions, Angles] | None = None

    def spatial_frequencies(self, device: torch.device) -> Tensor:
        """[d/16] values from pi to pi * 0.4 * min(height, width)."""
        last = 0.8 * min(self.height, self.width) / 2
        return torch.linspace(1.0, last, self.head_dim // 16, dtype=torch.float32, device=device) * math.pi

    def time_frequencies(self, device: torch.device) -> Tensor:
        """[d/8] values 10000^(-2i / (d/4))."""
        steps = torch.arange(self.head_dim // 8, dtype=torch.float32, device=device)
        return 1.0 / 10000.0 ** (2 * steps / (self.head_dim // 4))

    def grid_position(self, index: Tensor, size: int) -> Tensor:
        """Centre of cell `index` of `size` cells spanning [-1, 1]."""
        if self.linspace:
            centres = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, dtype=torch.float32, device=index.device)
            return centres[index]
        return (-1 + 1 / size) + (2 - 2 / size) * index.float() / max(size - 1, 1)

    def band(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        """positions [...] and frequencies [n] -> angles [..., 2n], every frequency twice in a row."""
        return (positions.unsqueeze(-1) * frequencies).repeat_interleave(2, dim=-1)

    def bands(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Angles of integer ids along each axis: [..., d/8], [..., d/8], [..., d/4]."""
        spatial, time = self.spatial_frequencies(x.device), self.time_frequencies(x.device)
        return (
            self.band(self.grid_position(x, self.width), spatial),
            self.band(self.grid_position(y, self.height), spatial),
            self.band(t.float(), time),
        )

    def round_tables(self, device: torch.device) -> None:
        """Switch to per-axis cosine and sine tables rounded to bf16 (spec C16: then a bf16 run is bit-equal)."""
        bands = self.bands(*(torch.arange(n, device=device) for n in (self.width, self.height, self.n_frames)))
        tables = (torch.stack((band.cos(), band.sin())).to(torch.bfloat16).float() for band in bands)
        self.table_x, self.table_y, self.table_t = tables

    def angles(self, pos: Positions) -> Angles:
        """(cos, sin), each [B, T, d/2] fp32; computed once for all layers that are given the same position dict."""
        if self.memo is None or self.memo[0] is not pos:
            self.memo = (pos, self.cos_sin(pos))
        return self.memo[1]

    def cos_sin(self, pos: Positions) -> Angles:
        return self.join_bands(*self.band_values(pos))

    def band_values(self, pos: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines of each band, [2, B, T, n], from the formula or from the rounded tables."""
        if self.table_x is None or self.table_y is None or self.table_t is None:
            x, y, t = (torch.stack((b.cos(), b.sin())) for b in self.bands(pos["x"], pos["y"], pos["t"]))
            return x, y, t
        return (
            self.table_x[:, pos["x"]].float(),
            self.table_y[:, pos["y"]].float(),
            self.table_t[:, pos["t"]].float(),
        )

    def join_bands(self, x: Tensor, y: Tensor, t: Tensor) -> Angles:
        """(cos, sin), [B, T, d/2] each, from the bands in the order [X | Y | T]."""
        cos, sin = torch.cat((x, y, t), dim=-1)
        return cos, sin

    def split_pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two members of every pair: adjacent features."""
        return x[..., 0::2], x[..., 1::2]

    def join_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """All first members, then all second ones; or pairs side by side again (option rotary_output)."""
        if self.interleaved_output:
            return torch.stack((first, second), dim=-1).flatten(-2)
        return torch.cat((first, second), dim=-1)

    def rotate(self, x: Tensor, angles: Angles) -> Tensor:
        """x [B, T, heads, d] rotated by angles [B, T, d/2]."""
        cos, sin = (a.unsqueeze(2) for a in angles)
        a, b = self.split_pairs(x.float())
        return self.join_pairs(a * cos - b * sin, b * cos + a * sin).to(x.dtype)

    def forward(self, x: Tensor, pos: Positions) -> Tensor:
        return self.rotate(x, self.angles(pos))
