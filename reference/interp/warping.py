"""Warping by a displacement field, and the frame loop that all warp interpolators share (spec 5).

Precision: the flow is cast to the dtype of the image before the grid is built, and the grid is built in that dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Two neighbouring keyframes of one sample with frames between them."""

    sample: int
    start: int
    end: int

    @property
    def gap(self) -> int:
        return self.end - self.start

    @property
    def inner(self) -> range:
        return range(self.start + 1, self.end)


def sampling_grid(flow: Tensor) -> Tensor:
    """Normalised positions of `p + flow(p)`: `(b, 2, h, w)` in pixels -> `(b, h, w, 2)`."""
    h, w = flow.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, dtype=flow.dtype, device=flow.device),
        torch.arange(w, dtype=flow.dtype, device=flow.device),
        indexing="ij",
    )
    gx = 2 * (x + flow[:, 0]) / max(w - 1, 1) - 1
    gy = 2 * (y + flow[:, 1]) / max(h - 1, 1) - 1
    return torch.stack([gx, gy], dim=-1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`warp(x, f)(p) = x(p + f(p))`, bilinear, border values outside: `(b, c, h, w)`, `(b, 2, h, w)` -> `(b, c, h, w)`."""
    grid = sampling_grid(flow.to(image.dtype))
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def segments_of(idx: Tensor) -> list[Segment]:
    """All pairs of neighbouring keyframes at least two frames apart, by sample, then by time."""
    found = []
    for b, row in enumerate(idx):
        keyframes = sorted(row.tolist())
        for start, end in itertools.pairwise(keyframes):
            if end - start >= 2:
                found.append(Segment(b, start, end))
    return found


def hold_and_fill(
    latents: Tensor, idx: Tensor, fill: Callable[[int, Segment, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Copy keyframes, repeat the outermost ones, and ask `fill(segment number, segment, t)` for what lies between.

    latents `(b, t, c, h, w)`, idx `(b, K)` -> video of the same shape and confidence `(b, t, h, w)`; `fill` returns a
    frame `(c, h, w)` and its confidence `(h, w)`.
    """
    video = latents.clone()
    confidence = torch.ones_like(latents[:, :, 0])
    for b, row in enumerate(idx):
        first, last = int(row.min()), int(row.max())
        video[b, :first] = latents[b, first]
        video[b, last + 1 :] = latents[b, last]
    for number, segment in enumerate(segments_of(idx)):
        for t in segment.inner:
            frame, trust = fill(number, segment, t)
            video[segment.sample, t] = frame
            confidence[segment.sample, t] = trust
    return video, confidence


def fraction(segment: Segment, t: int, like: Tensor) -> Tensor:
    """α = (t − t0) / gap, formed in the dtype of the latents, a scalar tensor."""
    return like.new_tensor(t - segment.start) / like.new_tensor(segment.gap)


def nothing(number: int, segment: Segment, t: int) -> tuple[Tensor, Tensor]:
    """The `fill` of a clip without gaps; it is never asked."""
    raise AssertionError(f"no frame lies between keyframes, yet {t} was asked for")
