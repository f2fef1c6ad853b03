"""Smoothing the joints, on frames uint8 `(f, h, w, 3)` (specification, section 4)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .video import interpolate_motion

METHODS = ("none", "temporal_filter", "deflicker", "optical_flow")
WINDOW = 3  # frames before and behind a junction
DEFLICKER_SIZE = 5
LUMA = (0.299, 0.587, 0.114)
LUMA_BLACK, LUMA_RANGE = 16.0, 219.0  # 8-bit video luma


def windows(junctions: Sequence[int], frames: int, radius: int = WINDOW, merge: bool = True) -> list[tuple[int, int]]:
    """Frame ranges `[first, last + 1)` around the junctions that the video has; overlapping ones become one.

    With `merge=False` they stay apart, and shared frames are repeated, as upstream does.
    """
    ranges = [(max(0, j - radius), min(frames - 1, j + radius) + 1) for j in junctions]
    ranges = [(a, b) for a, b in ranges if a < b]
    if not merge:
        return ranges
    merged: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if merged and a < merged[-1][1]:
            merged[-1] = merged[-1][0], max(b, merged[-1][1])
        else:
            merged.append((a, b))
    return merged


def mix_late(frames: Tensor) -> Tensor:
    """FFmpeg's `tmix` with weights 1 2 1: `(f[k−2] + 2 f[k−1] + f[k] + 2) // 4`; before the piece stands its first frame."""
    past = torch.cat([frames[:1], frames[:1], frames]).int()
    return ((past[:-2] + 2 * past[1:-1] + past[2:] + 2) // 4).to(torch.uint8)


def mix_centred(frames: Tensor) -> Tensor:
    """`(f[k−1] + 2 f[k] + f[k+1] + 2) // 4`; both ends of the piece stay as they are."""
    x = frames.int()
    inner = (x[:-2] + 2 * x[1:-1] + x[2:] + 2) // 4
    return torch.cat([x[:1], inner, x[-1:]]).to(torch.uint8) if len(frames) > 2 else frames


def deflicker(frames: Tensor, size: int = DEFLICKER_SIZE) -> Tensor:
    """FFmpeg's `deflicker`, power mean: scale a frame's luma to the power mean of its own and the next four.

    `(Σ l^5 / 5)^(1/5) / l`, l the mean luma in 16..235; behind the last frame it is repeated.
    """
    luma = LUMA_BLACK + LUMA_RANGE / 255 * (frames.double() * torch.tensor(LUMA).double()).sum(-1)
    level = luma.mean(dim=(1, 2))
    ahead = torch.cat([level, level[-1:].expand(size - 1)]).unfold(0, size, 1)
    target = ahead.pow(size).mean(dim=1).pow(1 / size)
    scaled = (luma * (target / level)[:, None, None]).clamp(0, 255)
    return (frames + ((scaled - luma) * 255 / LUMA_RANGE)[..., None]).clamp(0, 255).to(torch.uint8)


def follow_motion(frames: Tensor) -> Tensor:
    """Replace every second frame by the motion-compensated middle of its neighbours; the count stays."""
    kept = frames[::2]
    if len(kept) < 2:
        return frames
    smooth = frames.clone()
    middles = interpolate_motion(kept)
    smooth[1 : 2 * len(middles) : 2] = middles
    return smooth


def filter_of(method: str, centred: bool) -> Callable[[Tensor], Tensor]:
    """The filter of a method. Raises ValueError for an unknown one."""
    filters = {
        "temporal_filter": mix_centred if centred else mix_late,
        "deflicker": deflicker,
        "optical_flow": follow_motion,
    }
    if method not in filters:
        raise ValueError(f"Invalid smoothing method: {method}. Valid options: {list(METHODS)}")
    return filters[method]


def smooth(
    frames: Tensor,
    junctions: Sequence[int],
    method: str = "temporal_filter",
    radius: int = WINDOW,
    *,
    centred: bool = True,
    merge: bool = True,
    junctions_only: bool = True,
) -> Tensor:
    """Filter the windows around the junctions; every other frame is passed on as it is.

    Raises ValueError for an unknown method, and, as upstream, for `deflicker` of a whole video.
    """
    if method == "none":
        return frames
    apply = filter_of(method, centred)
    if not junctions:
        if junctions_only:
            return frames
        if method == "deflicker":
            raise ValueError("Unknown filter type: deflicker")
        return apply(frames)
    ranges = windows(junctions, len(frames), radius, merge)
    if not ranges:
        return frames
    pieces = [frames[: ranges[0][0]]]
    for (a, b), (next_a, _) in pairwise([*ranges, (len(frames), 0)]):
        pieces += [apply(frames[a:b]), frames[b : max(b, next_a)]]
    return torch.cat(pieces)
