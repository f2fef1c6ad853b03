"""What is visibly wrong with the frames of one clip, measured against what the other clip's scene does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from parity.clips.frames import Clip, Frames

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Defects:
    """What one side shows, per frame [F]; `find_defects` has the rules."""

    blank: Bools
    black: Bools
    white: Bools
    green: Bools
    frozen: Bools
    flicker: Bools
    saturated: Bools
    nonfinite: Bools

    def at(self, frame: int) -> tuple[str, ...]:
        """Names of the defects of one frame."""
        return tuple(name for name, values in self.items() if frame < len(values) and values[frame])

    def items(self) -> tuple[tuple[str, Bools], ...]:
        """All defects with their flags, in order of declaration."""
        return tuple((name, getattr(self, name)) for name in self.__dataclass_fields__)


def find_defects(side: Clip, other: Clip) -> Defects:
    """Flag the defects of `side`, with `other` as the measure of what the scene itself does.

    blank      no variance: the standard deviation over the picture is under 1 level in every channel
    black      at least 99.5 % of the samples are <= 8;   white: >= 247
    green      green exceeds red and blue by 16 levels and by half again, on average and in 90 % of pixels (zeroed YUV)
    frozen     the picture moved at most 5 % of what the other side moved since the last frame (or moves as a rule)
    flicker    the mean brightness jumps and returns by over 3x what the other side's does nearby + 2 levels,
               and the frame stands 2 levels off the other side's (a constant offset set aside)
    saturated  more than 10 % of the samples sit at 0 or 255, and more than 3x the other side's (not black, white)
    nonfinite  the values that the frame was made from held NaN or Inf
    """
    frames, count = side.frames, len(side)
    stats = [_frame_stats(frame) for frame in frames]
    deviation, dark, light, green, clipped, mean = np.asarray(stats, np.float64).reshape(-1, 6).T
    moved, moved_other = _motion(frames), _fit(_motion(other.frames), count)
    # A cut of the other side is no motion that this side has to follow: its median bounds what is asked for.
    usual = np.minimum(moved_other, _median(moved_other))
    mean_other = _fit(np.asarray([float(frame.mean()) for frame in other.frames]), count)
    around = np.max([np.roll(np.pad(_spikes(mean_other), 1), k)[1:-1] for k in (-1, 0, 1)], axis=0)
    apart = mean - mean_other
    apart -= np.nan_to_num(_median(apart))
    clipped_other = _fit(np.asarray([_frame_stats(frame)[4] for frame in other.frames]), count)
    nonfinite = np.zeros(count, bool) if side.nonfinite is None else side.nonfinite > 0
    with np.errstate(invalid="ignore"):
        return Defects(
            blank=deviation < 1.0,
            black=dark >= 0.995,
            white=light >= 0.995,
            green=green > 0,
            frozen=(usual >= 0.25) & (moved <= 0.05 * usual),
            flicker=(_spikes(mean) > 3 * np.nan_to_num(around) + 2) & (np.abs(apart) > 2),
            saturated=(clipped > 0.1) & (clipped > 3 * np.nan_to_num(clipped_other)) & (dark < 0.995) & (light < 0.995),
            nonfinite=nonfinite,
        )


def _frame_stats(frame: Frames) -> tuple[float, float, float, float, float, float]:
    """Largest channel deviation, share dark, share light, green (0 or 1), share clipped, mean of a frame [H, W, 3]."""
    levels = frame.astype(np.float32)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    rival = np.maximum(red, blue)
    is_green = green.mean() > max(1.5 * rival.mean(), rival.mean() + 16) and float((green > rival).mean()) >= 0.9
    clipped = float(((frame == 0) | (frame == 255)).mean())
    deviation = float(levels.std(axis=(0, 1)).max())
    return deviation, float((frame <= 8).mean()), float((frame >= 247).mean()), is_green, clipped, float(levels.mean())


def _motion(frames: Frames) -> Floats:
    """Mean |frame - previous frame| in levels, nan for the first."""
    moves = [float(np.abs(b.astype(np.int16) - a).mean()) for a, b in pairwise(frames)]
    return np.asarray([np.nan, *moves][: len(frames)], np.float64)


def _spikes(series: Floats) -> Floats:
    """|x[i] - median(x[i-1], x[i], x[i+1])|: how high a jump that returns is; 0 on cuts, ramps and at the ends."""
    result = np.zeros_like(series)
    if len(series) > 2:
        result[1:-1] = np.abs(series[1:-1] - np.median([series[:-2], series[1:-1], series[2:]], axis=0))
    return result


def _fit(values: Floats, count: int) -> Floats:
    """Cut or pad with nan to `count` frames: what the other side does not have cannot be compared with."""
    return np.pad(values[:count], (0, max(0, count - len(values))), constant_values=np.nan)


def _median(values: Floats) -> float:
    """Median of what is known; nan when nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def frame_ranges(indices: NDArray[np.intp], limit: int = 8) -> str:
    """`3, 5-8, 12`; the runs beyond `limit` are counted."""
    if len(indices) == 0:
        return ""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(parts[:limit]) + (f" and {len(parts) - limit} more runs" if len(parts) > limit else "")
