"""Compare two clips frame by frame: figures, visible defects of each side, and the mistakes that explain them.

Every threshold is in 8-bit levels (0..255) or relative to what the other side shows, so that a legitimate dark scene, a
still or a fade is not called a defect: a flag counts against the port only where the reference does not show it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parity.clips.defects import Defects, find_defects, frame_ranges
from parity.clips.frames import Clip, Frames, frames_from_tensor, load_clip, write_clip
from parity.clips.hints import best_shift, count_hints, explain, range_hints

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

    def lines(self) -> list[str]:
        """Say what was found, one fact a line."""
        (height, width), (height_port, width_port) = self.sizes
        sizes = f"{width}x{height} (reference), {self.frames[1]} of {width_port}x{height_port} (port)"
        found = [f"{self.verdict}: {self.frames[0]} frames of {sizes}"]
        if len(self.psnr):
            bad = frame_ranges(np.flatnonzero(self.bad)) or "none"
            found.append(f"PSNR {_spread(self.psnr, 'dB')}; SSIM {_spread(self.ssim)}; bad frames: {bad}")
        if self.first_bad is not None:
            found.append(f"first bad frame: {self.first_bad} ({'; '.join(self.reasons)})")
        for side, defects in (("reference", self.reference_defects), ("port", self.port_defects)):
            seen = [f"{name} {frame_ranges(np.flatnonzero(flags))}" for name, flags in defects.items() if flags.any()]
            found += [f"{side}: {'; '.join(seen)}"] if seen else []
        return [*found, *(f"hint: {hint}" for hint in self.hints)]


def compare_clips(reference: Clip, port: Clip, limits: Limits | None = None) -> ClipComparison:
    """Compare two clips; frames are paired by index. Clips of different picture size are `incomparable`."""
    limits = limits or Limits()
    a, b = reference.frames, port.frames
    comparable = reference.size == port.size
    count = min(len(a), len(b)) if comparable else 0
    psnr, ssim, max_abs, mean_shift, block = _figures(a[:count], b[:count])
    ours, theirs = find_defects(reference, port), find_defects(port, reference)
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


def _spread(values: Floats, unit: str = "") -> str:
    """`20.1 dB at worst, 31.2 dB in the middle`."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "not measured"
    worst, middle = (f"{value:.3g} {unit}".strip() for value in (known.min(), np.sort(known)[len(known) // 2]))
    return f"{worst} at worst, {middle} in the middle"


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
