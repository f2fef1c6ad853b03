"""Rotary tables over time, height and width, with absolute frame numbers (spec 8.4.1).

Precision: angles float64, tables float32, rotation in the promoted dtype of values and tables, result in that of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Widths of time, height, width: height and width get `2⌊d/6⌋`."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def axis_angles(width: int, positions: int, theta: float = 10000.0) -> Tensor:
    """`n · θ^(−2i/width)`, each twice: float64 `(positions, width)`."""
    rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(positions, dtype=torch.float64), rates).repeat_interleave(2, dim=1)


class AbsoluteTimeRope(nn.Module):
    """Tables of a token grid; the time row of frame slot j is `frame_indices[b, j]`, or j when none are set."""

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int = 1024) -> None:
        super().__init__()
        self.patch_size, self.rows = patch_size, max_seq_len
        self.widths = axis_widths(head_dim)
        angles = torch.cat([axis_angles(width, max_seq_len) for width in self.widths], dim=1)
        self.register_buffer("freqs_cos", angles.cos().float(), persistent=False)
        self.register_buffer("freqs_sin", angles.sin().float(), persistent=False)
        self.frame_indices: Tensor | None = None

    def set_frame_indices(self, indices: Tensor | None) -> None:
        """Set absolute frame numbers `(f,)`, `(1, f)` or `(b, f)` for all following calls, or clear them."""
        self.frame_indices = None if indices is None else torch.atleast_2d(indices.long())

    def time_rows(self, batch: int, frames: int) -> Tensor:
        """Row of the time table of every frame slot: int64 `(1 or b, f)`. Errors: ValueError for indices that do not fit."""
        pt = self.patch_size[0]
        if self.frame_indices is None:
            return torch.arange(frames // pt)[None]
        given = self.frame_indices
        if given.shape[1] != frames:
            raise ValueError(f"{given.shape[1]} frame indices are set, the input has {frames} frames")
        if given.shape[0] not in (1, batch):
            raise ValueError(f"frame indices for {given.shape[0]} samples are set, the batch has {batch}")
        if frames % pt:
            raise ValueError(f"{frames} frames do not divide by the temporal patch {pt}")
        if int(given.min()) < 0 or int(given.max()) >= self.rows:
            raise ValueError(f"frame indices must lie in [0, {self.rows - 1}]")
        return given[:, ::pt].expand(batch, -1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every token of latents `(b, c, f, h, w)`: `(1 or b, l, 1, d)` each."""
        h, w = x.shape[3] // self.patch_size[1], x.shape[4] // self.patch_size[2]
        rows = self.time_rows(x.shape[0], x.shape[2]).tolist()
        cos = torch.stack([self.of_sample(self.freqs_cos, sample, h, w) for sample in rows])
        sin = torch.stack([self.of_sample(self.freqs_sin, sample, h, w) for sample in rows])
        return cos[:, :, None], sin[:, :, None]

    def of_sample(self, table: Tensor, rows: list[int], h: int, w: int) -> Tensor:
        """One sample, token by token: `(l, d)`."""
        time, height, width = table.split(self.widths, dim=1)
        return torch.stack(
            [torch.cat([time[t], height[y], width[x]]) for t in rows for y in range(h) for x in range(w)]
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs: `(b, l, heads, d)`, tables `(1 or b, l, 1, d)`."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2).to(x.dtype)
