"""Compare two clips frame by frame: figures, visible defects of each side, and the mistakes that explain them.

Every threshold is in 8-bit levels (0..255) or relative to what the other side shows, so that a legitimate dark scene, a
still or a fade is not called a defect: a flag counts against the port only where the reference does not show it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parity.clip_hints import best_shift, count_hints, explain, range_hints
from parity.clips import Clip, Frames, frames_from_tensor, load_clip, write_clip

__all__ = [
    "Clip",
    "ClipComparison",
    "Defects",
    "Limits",
    "compare_clips",
    "frames_from_tensor",
    "load_clip",
    "write_clip",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SSIM_SIDE = 256  # SSIM is taken at about this height, as its authors advise: it is a measure of what a viewer sees
BLOCK = 16


@dataclass(frozen=True)
class Limits:
    """When a frame is bad. The defaults admit what a right port in bf16, or a good lossy codec, does to frames."""

    psnr: float = 35.0  # dB over the frame
    ssim: float = 0.95
    block: float = 24.0  # RMS error, in levels, of the worst 16 x 16 block: a bad patch that a frame's mean hides


@dataclass(frozen=True, eq=False)
class Defects:
    """What one side shows, per frame [F]; `_defects` has the rules."""

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


@dataclass(frozen=True, eq=False)
class ClipComparison:
    """Figures per common frame [F], defects of both sides, and hints (sentences) on what would explain the difference.

    `psnr` in dB (inf = equal); `mean_shift` is mean(port) - mean(reference) and `max_abs`, `block` are in levels.
    `shift` is k when port frame i + k shows what reference frame i shows. `reasons` says why `first_bad` is bad.
    """

    verdict: Literal["match", "diverged", "incomparable"]
    frames: tuple[int, int]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    psnr: Floats
    ssim: Floats
    max_abs: Floats
    mean_shift: Floats
    block: Floats
    bad: Bools
    reference_defects: Defects
    port_defects: Defects
    first_bad: int | None = None
    reasons: tuple[str, ...] = ()
    shift: int = 0
    hints: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values (non-finite floats become strings)."""

        def plain(values: Floats) -> list[float | str]:
            return [round(float(v), 6) if np.isfinite(v) else str(float(v)) for v in values]

        sides: Mapping[str, Defects] = {"reference": self.reference_defects, "port": self.port_defects}
        return {
            "verdict": self.verdict,
            "frames": list(self.frames),
            "sizes": [list(size) for size in self.sizes],
            "first_bad": self.first_bad,
            "reasons": list(self.reasons),
            "shift": self.shift,
            "hints": list(self.hints),
            "psnr": plain(self.psnr),
            "ssim": plain(self.ssim),
            "max_abs": plain(self.max_abs),
            "mean_shift": plain(self.mean_shift),
            "block": plain(self.block),
            "defects": {
                side: {name: np.flatnonzero(flags).tolist() for name, flags in defects.items() if flags.any()}
                for side, defects in sides.items()
            },
        }


def compare_clips(reference: Clip, port: Clip, limits: Limits | None = None) -> ClipComparison:
    """Compare two clips; frames are paired by index. Clips of different picture size are `incomparable`."""
    limits = limits or Limits()
    a, b = reference.frames, port.frames
    comparable = reference.size == port.size
    count = min(len(a), len(b)) if comparable else 0
    psnr, ssim, max_abs, mean_shift, block = _figures(a[:count], b[:count])
    ours, theirs = _defects(reference, port), _defects(port, reference)
    only_port = np.zeros(count, bool)
    for (_, seen), (_, flags) in zip(ours.items(), theirs.items(), strict=True):
        only_port |= flags[:count] & ~seen[:count]
    with np.errstate(invalid="ignore"):
        bad = (psnr < limits.psnr) | (ssim < limits.ssim) | (block > limits.block) | only_port
    first = int(np.argmax(bad)) if bad.any() else None
    hints = [*count_hints(len(a), len(b)), *range_hints(reference.value_range, port.value_range)]
    shift = 0
    if not comparable:
        (height, width), (height_port, width_port) = reference.size, port.size
        hints.insert(0, f"the picture sizes differ: {width}x{height} against {width_port}x{height_port}")
    elif bad.any():
        shift = best_shift(a, b, bad)
        hints += explain(a, b, shift, bad)
    diverged = bool(bad.any()) or len(a) != len(b)
    return ClipComparison(
        verdict="incomparable" if not comparable else "diverged" if diverged else "match",
        frames=(len(a), len(b)),
        sizes=(reference.size, port.size),
        psnr=psnr,
        ssim=ssim,
        max_abs=max_abs,
        mean_shift=mean_shift,
        block=block,
        bad=bad,
        reference_defects=ours,
        port_defects=theirs,
        first_bad=first,
        reasons=() if first is None else _reasons(first, psnr, ssim, block, ours, theirs, limits),
        shift=shift,
        hints=tuple(hints),
        limits=limits,
    )


def _figures(a: Frames, b: Frames) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """PSNR, SSIM, max |error|, mean shift and worst-block RMS of each pair of frames [F, H, W, 3]."""
    rows = [_frame_figures(x, y) for x, y in zip(a, b, strict=True)]
    psnr, ssim, max_abs, mean_shift, block = np.asarray(rows, np.float64).reshape(-1, 5).T
    return psnr, ssim, max_abs, mean_shift, block


def _frame_figures(a: Frames, b: Frames) -> tuple[float, float, float, float, float]:
    if np.array_equal(a, b):
        return float("inf"), 1.0, 0.0, 0.0, 0.0
    error = b.astype(np.float32) - a.astype(np.float32)
    squared = np.square(error).mean(axis=2)
    psnr = 10 * np.log10(255.0**2 / squared.mean())
    return float(psnr), _ssim(a, b), float(np.abs(error).max()), float(error.mean()), _worst_block(squared)


def _ssim(a: Frames, b: Frames) -> float:
    """SSIM of two frames at viewing size; nan when they are smaller than its window can be (3 pixels)."""
    import cv2
    from skimage.metrics import structural_similarity

    height, width = a.shape[:2]
    scale = max(1, round(min(height, width) / SSIM_SIDE))
    if scale > 1:
        size = (width // scale, height // scale)
        a = np.asarray(cv2.resize(a, size, interpolation=cv2.INTER_AREA), np.uint8)
        b = np.asarray(cv2.resize(b, size, interpolation=cv2.INTER_AREA), np.uint8)
    window = min(7, *(side - 1 + side % 2 for side in a.shape[:2]))
    if window < 3:
        return float("nan")
    measure: Any = structural_similarity  # scikit-image ships no types
    return float(measure(a, b, channel_axis=2, data_range=255, win_size=window))


def _worst_block(squared: NDArray[np.float32]) -> float:
    """Root of the largest mean of `squared` [H, W] over blocks of 16 x 16; the last block may overlap its neighbour."""
    height, width = squared.shape
    sums = np.pad(squared, ((1, 0), (1, 0))).cumsum(0, np.float64).cumsum(1)
    tall, wide = min(BLOCK, height), min(BLOCK, width)
    tops = np.unique(np.append(np.arange(0, height - tall + 1, BLOCK), height - tall))[:, None]
    lefts = np.unique(np.append(np.arange(0, width - wide + 1, BLOCK), width - wide))[None]
    total = sums[tops + tall, lefts + wide] - sums[tops, lefts + wide] - sums[tops + tall, lefts] + sums[tops, lefts]
    return float(np.sqrt(max(0.0, total.max()) / (tall * wide)))


def _defects(side: Clip, other: Clip) -> Defects:
    """Flag the defects of `side`, with `other` as the measure of what the scene itself does.

    blank      no variance: the standard deviation over the picture is under 1 level in every channel
    black      at least 99.5 % of the samples are <= 8;   white: >= 247
    green      green exceeds red and blue by 16 levels and by half again, on average and in 90 % of pixels (zeroed YUV)
    frozen     the picture moved at most 5 % of what the other side moved since the last frame (or moves as a rule)
    flicker    the mean brightness jumps and returns by over 3x what the other side's does nearby + 2 levels,
               and the frame stands 2 levels off the other side's (a constant offset set aside)
    saturated  more than 10 % of the samples sit at 0 or 255, and more than 3x as many as on the other side (not black, white)
    nonfinite  the values that the frame was made from held NaN or Inf
    """
    frames, count = side.frames, len(side)
    stats = [_frame_stats(frame) for frame in frames]
    deviation, dark, light, green, clipped, mean = np.asarray(stats, np.float64).reshape(-1, 6).T
    moved, moved_other = _motion(frames), _fit(_motion(other.frames), count)
    # A cut of the other side is no motion that this side has to follow: its median bounds what is asked for.
    usual = np.minimum(moved_other, np.median(moved_other[1:]) if count > 1 else np.nan)
    mean_other = _fit(np.asarray([float(frame.mean()) for frame in other.frames]), count)
    around = np.max([np.roll(np.pad(_spikes(mean_other), 1), k)[1:-1] for k in (-1, 0, 1)], axis=0)
    apart = mean - mean_other
    apart -= np.median(apart[np.isfinite(apart)]) if np.isfinite(apart).any() else 0
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


def _reasons(
    frame: int, psnr: Floats, ssim: Floats, block: Floats, ours: Defects, theirs: Defects, limits: Limits
) -> tuple[str, ...]:
    reasons = [f"the port's frame is {name}" for name in theirs.at(frame) if name not in ours.at(frame)]
    if psnr[frame] < limits.psnr:
        reasons.append(f"PSNR {psnr[frame]:.1f} dB is under {limits.psnr:g} dB")
    if ssim[frame] < limits.ssim:
        reasons.append(f"SSIM {ssim[frame]:.3f} is under {limits.ssim:g}")
    if block[frame] > limits.block:
        reasons.append(f"the worst 16x16 block is off by {block[frame]:.0f} levels RMS (limit {limits.block:g})")
    return tuple(reasons)
