"""How many windows a request has, and which frames each starts from (spec section 7)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LATENT_STEP = 4


@dataclass(frozen=True)
class Plan:
    """A request after alignment. reuse: leading frames of a window; frame_num: frames of the first window."""

    video_length: int
    overlap: int
    current: int
    sliding: bool
    reuse: int
    windows: int
    first_window: int
    frame_num: int


def align_length(frames: int) -> int:
    """The largest 4k+1 that is not larger."""
    return LATENT_STEP * ((frames - 1) // LATENT_STEP) + 1


def align_overlap(definition: Mapping[str, Any], overlap: int) -> int:
    """The definition's own overlap stays as it is, any other becomes 4k+1."""
    own = definition.get("sliding_window_defaults", {}).get("overlap_default", 0)
    return overlap if overlap == own else align_length(overlap)


def plan(
    definition: Mapping[str, Any],
    video_length: int,
    overlap: int,
    window_size: int,
    source_frames: int,
    discard: int = 0,
) -> Plan:
    """Count windows and frames of a request; `source_frames` is 0 without a source video, `window_size` 0 for one window."""
    length = align_length(video_length)
    size = align_length(window_size) if window_size else 0
    overlap = align_overlap(definition, overlap)
    discard = LATENT_STEP * (discard // LATENT_STEP)
    current, sliding, reuse, windows = length, False, 0, 1
    if definition.get("sliding_window"):
        current = length + (min(overlap, source_frames) - 1 if source_frames else 0)
        sliding = bool(size) and current > size
        reuse = min(size - LATENT_STEP, overlap) if size else overlap
    if sliding:
        windows = 1 + math.ceil((current - size + discard) / (size - discard - reuse))
    first = size if sliding else current
    return Plan(length, overlap, current, sliding, reuse, windows, first, LATENT_STEP * (first // LATENT_STEP) + 1)


def leading_frames(prefix: Tensor, reuse: int) -> Tensor:
    """The frames of `(3, t, H, W)` that a window starts from; reuse 0 takes them all."""
    return prefix[:, -reuse:]


def join(prefix: Tensor | None, sample: Tensor, leading: int) -> Tensor:
    """Put a window behind what came before, without the frames that it repeats; a single start frame is the sample's own."""
    if prefix is None or prefix.shape[1] <= 1:
        return sample
    return torch.cat([prefix, sample[:, leading:]], dim=1)
