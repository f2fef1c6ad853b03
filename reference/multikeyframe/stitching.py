"""Joining segments, on frames uint8 `(f, h, w, 3)` (specification, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

BLEND_SECONDS = 0.5


def index_map(lengths: Sequence[int], drop_shared: bool) -> Tensor:
    """Where each frame of the joined video comes from: int64 `(frames, 2)`, segment and frame in it."""
    return torch.tensor(
        [(s, f) for s, length in enumerate(lengths) for f in range(1 if drop_shared and s else 0, length)]
    )


def concat(clips: Sequence[Tensor], drop_shared: bool) -> Tensor:
    """Lay clips end to end; with `drop_shared` the first frame of every later one, the shared keyframe, is left out.

    Raises ValueError when there is no clip.
    """
    if not clips:
        raise ValueError("No video paths provided")
    return torch.cat([clip[1:] if drop_shared and i else clip for i, clip in enumerate(clips)])


def retime(frames: Tensor, rate: float, target: float) -> Tensor:
    """Repeat or leave out frames so that `rate` becomes `target` with the same duration, as FFmpeg's `fps` filter.

    Frame i takes place `round(i·target/rate)`, halves up; an output frame shows the last one that has taken place.
    """
    places = [int(i * target / rate + 0.5) for i in range(len(frames) + 1)]
    shown = [max(i for i in range(len(frames)) if places[i] <= n) for n in range(places[-1])]
    return frames[shown]


def crossfade(first: Tensor, second: Tensor, rate: float) -> Tensor:
    """Fade over the last half second of `first`: FFmpeg's `xfade`, offset = its duration − 0.5 s.

    `p·first + (1 − p)·second`, truncated to 8 bits, p falling from 1 to 0; the sum of both lengths less the overlap.
    """
    overlap = int(BLEND_SECONDS * rate)
    start = len(first) - overlap
    p = 1 - torch.arange(overlap)[:, None, None, None] / overlap
    mixed = (p * first[start:] + (1 - p) * second[:overlap]).to(torch.uint8)
    return torch.cat([first[:start], mixed, second[overlap:]])
