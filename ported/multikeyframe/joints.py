"""Joining segments and smoothing their joints, on frames uint8 `(f, h, w, 3)`."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ported.multikeyframe.film import Frames, run_filter

RADIUS = 3  # frames smoothed on both sides of a joint


def join(clips: Sequence[Frames], joint: str) -> Frames:
    """One video of several clips; with joint "drop" a later clip loses its first frame, the keyframe shown already."""
    return np.concatenate([clip[1 if joint == "drop" and i > 0 else 0 :] for i, clip in enumerate(clips)])


def frame_sources(lengths: Sequence[int], joint: str) -> np.ndarray:
    """Segment and frame in it of every frame of the joined video, int64 `(frames, 2)`."""
    starts = [int(joint == "drop" and i > 0) for i in range(len(lengths))]
    rows = [(i, k) for i, (start, length) in enumerate(zip(starts, lengths, strict=True)) for k in range(start, length)]
    return np.array(rows, dtype=np.int64)


def smoothing_windows(joints: Sequence[int], frames: int) -> list[tuple[int, int]]:
    """Ranges `[first, end)` of frames that smoothing may change; no two overlap."""
    touched = np.zeros(frames, bool)
    for joint in joints:
        touched[max(0, joint - RADIUS) : joint + RADIUS + 1] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], touched, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def temporal_filter(window: Frames) -> Frames:
    """1-2-1 over time, centred on its frame, rounded half up; the first and last frame stay."""
    padded = window.astype(np.uint16)
    out = window.copy()
    out[1:-1] = (padded[:-2] + 2 * padded[1:-1] + padded[2:] + 2) // 4
    return out


def deflicker(window: Frames) -> Frames:
    """FFmpeg's deflicker, power mean over five frames."""
    pictures = run_filter(window, "deflicker", "mode=pm:size=5")
    return np.stack([pictures[time] for time in sorted(pictures)])


def optical_flow(window: Frames) -> Frames:
    """Every second frame becomes the motion-compensated middle of its neighbours."""
    kept = window[::2]
    if len(kept) < 2:
        return window
    # FFmpeg's filter needs a neighbour on both sides: repeat the ends.
    pictures = run_filter(np.concatenate([kept[:1], kept, kept[-1:], kept[-1:]]), "minterpolate", "fps=2:scd=none")
    out = window.copy()
    for k in range(len(kept) - 1):
        out[2 * k + 1] = pictures[Fraction(2 * (k + 1) + 1, 2)]
    return out


FILTERS = {"temporal_filter": temporal_filter, "deflicker": deflicker, "optical_flow": optical_flow}


def smooth(frames: Frames, joints: Sequence[int], method: str) -> Frames:
    """Smooth the windows around the joints; nothing else changes, and no frame is added or lost."""
    if method == "none":
        return frames
    out = frames.copy()
    for first, end in smoothing_windows(joints, len(frames)):
        out[first:end] = FILTERS[method](frames[first:end])
    return out
