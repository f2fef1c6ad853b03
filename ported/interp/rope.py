"""Absolute frame numbers for diffusers' rotary tables (spec 8.4.1). Tables float32, made from float64 angles."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn


class AbsoluteTimeRope(nn.Module):
    """Wraps the library's tables (`base_rope`); set frame indices move the time rows, None leaves the base."""

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int], max_seq_len: int = 1024) -> None:
        super().__init__()
        self.base_rope = WanRotaryPosEmbed(head_dim, tuple(patch_size), max_seq_len)
        self.frame_indices: Tensor | None = None

    @property
    def freqs_cos(self) -> Tensor:
        """The whole table of cosines, by position."""
        return self.base_rope.freqs_cos

    @property
    def freqs_sin(self) -> Tensor:
        """The whole table of sines."""
        return self.base_rope.freqs_sin

    def set_frame_indices(self, indices: Tensor | None) -> None:
        """Absolute frame numbers `(f,)` or `(1 or b, f)` for the calls that follow, until they are cleared by None."""
        self.frame_indices = None if indices is None else indices.long().reshape(-1, indices.shape[-1])

    def check(self, indices: Tensor, batch: int, frames: int) -> None:
        """ValueError for indices that do not fit the input."""
        rows, patch = len(self.base_rope.freqs_cos), self.base_rope.patch_size[0]
        if indices.shape[1] != frames or len(indices) not in (1, batch):
            raise ValueError(f"frame indices {tuple(indices.shape)} for {batch} samples of {frames} frames")
        if frames % patch:
            raise ValueError(f"{frames} frames cannot be cut into patches of {patch}")
        if bool(((indices < 0) | (indices >= rows)).any()):
            raise ValueError(f"frame indices outside [0, {rows})")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tables of latents `(b, c, f, h, w)`: `(1 or b, l, 1, d)`."""
        if self.frame_indices is None:
            return self.base_rope(x)
        batch, _, frames, height, width = x.shape
        self.check(self.frame_indices, batch, frames)
        pt, ph, pw = self.base_rope.patch_size
        rows = self.frame_indices[:, ::pt].expand(batch, -1)
        h, w = height // ph, width // pw
        return tuple(self.gather(table, rows, h, w) for table in (self.freqs_cos, self.freqs_sin))

    def gather(self, table: Tensor, rows: Tensor, h: int, w: int) -> Tensor:
        """Time rows by number, height and width by place."""
        rope = self.base_rope
        time, height, width = table.split((rope.t_dim, rope.h_dim, rope.w_dim), dim=1)
        b, f = rows.shape
        parts = (
            time[rows][:, :, None, None].expand(b, f, h, w, -1),
            height[:h][None, None, :, None].expand(b, f, h, w, -1),
            width[:w][None, None, None].expand(b, f, h, w, -1),
        )
        return torch.cat(parts, dim=-1).reshape(b, f * h * w, 1, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation of the library's attention, `(b, l, heads, d)`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * c - odd * s
    out[..., 1::2] = even * s + odd * c
    return out
