"""Warping, and the bookkeeping by which all gaps of a batch are filled at once (spec 5).

Grids are built in the dtype of the image, as the models were trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Gaps:
    """All pairs of neighbouring keyframes with frames between them, and all those frames.

    sample, start, end: int64 `(pairs,)`. pair, time: int64 `(places,)`, the frames to fill, ordered by sample, then time.
    """

    sample: Tensor
    start: Tensor
    end: Tensor
    pair: Tensor
    time: Tensor

    def gap(self) -> Tensor:
        """Length of every pair."""
        return self.end - self.start

    def alpha(self, like: Tensor) -> Tensor:
        """Place of every frame in its gap, in the dtype of the latents: `(places,)`."""
        done = (self.time - self.start[self.pair]).to(like.dtype)
        return done / self.gap()[self.pair].to(like.dtype)


def find_gaps(idx: Tensor) -> Gaps:
    """Sort keyframes `(b, K)` and list what lies between them."""
    idx = idx.sort(dim=1).values
    sample, which = (idx[:, 1:] - idx[:, :-1] >= 2).nonzero(as_tuple=True)
    start, end = idx[sample, which], idx[sample, which + 1]
    pair = torch.repeat_interleave(torch.arange(len(sample), device=idx.device), end - start - 1)
    first = torch.cumsum(end - start - 1, dim=0) - (end - start - 1)
    time = start[pair] + 1 + torch.arange(len(pair), device=idx.device) - first[pair]
    return Gaps(sample, start, end, pair, time)


def sampling_grid(flow: Tensor) -> Tensor:
    """Positions `p + flow` `(b, 2, h, w)` in the units of grid_sample: `(b, h, w, 2)`."""
    h, w = flow.shape[-2:]
    x = torch.arange(w, dtype=flow.dtype, device=flow.device)
    y = torch.arange(h, dtype=flow.dtype, device=flow.device)[:, None]
    columns = 2 * (x + flow[:, 0]) / max(w - 1, 1) - 1
    rows = 2 * (y + flow[:, 1]) / max(h - 1, 1) - 1
    return torch.stack((columns, rows), dim=-1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Read `image` `(b, c, h, w)` at `p + flow(p)`, bilinear, border outside."""
    grid = sampling_grid(flow.to(image.dtype))
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def fill_gaps(
    latents: Tensor, idx: Tensor, gaps: Gaps, make: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Keyframes as they are, the outermost repeated, the rest from `make`: `(places, c, h, w)`, `(places, h, w)`."""
    frames = latents.shape[1]
    t = torch.arange(frames, device=latents.device)
    source = torch.minimum(torch.maximum(t, idx.amin(dim=1, keepdim=True)), idx.amax(dim=1, keepdim=True))
    video = latents[torch.arange(len(latents), device=latents.device)[:, None], source]
    confidence = torch.ones_like(video[:, :, 0])
    if len(gaps.pair):
        made, trust = make()
        where = (gaps.sample[gaps.pair], gaps.time)
        video = video.index_put(where, made.to(video.dtype))
        confidence = confidence.index_put(where, trust.to(confidence.dtype))
    return video, confidence
