"""Frames side by side: reference, port and their amplified difference, as small pictures within a byte budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from parity.clips.compare import ClipComparison, compare_clips
from parity.clips.defects import frame_ranges
from parity.clips.frames import Clip
from parity.report.pixels import jpeg
from parity.report.svg import Chart, Series, draw
from parity.report.wording import number

Pictures = NDArray[np.uint8]
MAX_FRAMES = 160
BUDGET = 2_200_000  # bytes of all pictures of a page
FPS = 8.0  # of playback, where the clip does not say
TRIALS = ((384, 88), (320, 82), (256, 78), (192, 72), (128, 65), (96, 55), (64, 45))  # width in pixels, JPEG quality


@dataclass(frozen=True)
class FrameRow:
    """One frame index: the data URIs of reference, port and difference (empty where a side has no such frame)."""

    index: int
    reference: str
    port: str
    difference: str
    psnr: str
    ssim: str
    bad: bool
    defects: tuple[str, ...]


@dataclass(frozen=True)
class FramesView:
    """Everything the page says about two clips."""

    comparison: ClipComparison
    rows: tuple[FrameRow, ...]
    chosen: int  # position in `rows` of the frame to look at first
    gain: float
    total: int  # frames of the longer side
    fps: float
    charts: tuple[Markup, ...]
    defects: tuple[tuple[str, str, str], ...]  # defect, frames of the reference, frames of the port


def frames_view(reference: Clip, port: Clip, comparison: ClipComparison | None = None) -> FramesView | None:
    """Compare two clips and draw them; None when neither side has a frame."""
    if len(reference) == 0 and len(port) == 0:
        return None
    found = comparison or compare_clips(reference, port)
    indices = _choose(max(len(reference), len(port)), found)
    gain = _gain(reference.frames, port.frames, found, indices) if found.verdict != "incomparable" else 1.0
    pictures: list[tuple[str, str, str]] = []
    for width, quality in TRIALS:
        pictures = [_triple(reference.frames, port.frames, i, gain, width, quality) for i in indices]
        if sum(len(uri) for triple in pictures for uri in triple) <= BUDGET:
            break
    rows = tuple(_row(index, triple, found) for index, triple in zip(indices, pictures, strict=True))
    chosen = indices.index(found.first_bad) if found.first_bad is not None else 0
    total, fps = max(len(reference), len(port)), reference.fps or port.fps or FPS
    return FramesView(found, rows, chosen, gain, total, fps, _curves(found), _defect_table(found))


def _choose(count: int, found: ClipComparison) -> list[int]:
    """The first bad frame with its neighbours, both ends, the first frame of each defect, and others evenly."""
    wanted = {0, count - 1}
    if found.first_bad is not None:
        wanted |= {max(0, found.first_bad - 1), found.first_bad, min(count - 1, found.first_bad + 1)}
    for _, flags in found.port_defects.items():
        if flags.any() and len(wanted) < MAX_FRAMES:
            wanted.add(int(np.argmax(flags)))
    for index in np.rint(np.linspace(0, count - 1, min(count, MAX_FRAMES))).astype(int).tolist():
        if len(wanted) < MAX_FRAMES:
            wanted.add(index)
    return sorted(wanted)


def _gain(reference: Pictures, port: Pictures, found: ClipComparison, indices: list[int]) -> float:
    """The power of two, at most 64, that brings a strong difference of the first bad frame to full brightness."""
    asked = indices if found.first_bad is None else [found.first_bad]
    strongest = [
        float(np.percentile(np.abs(port[i].astype(np.int16) - reference[i]), 99.5))
        for i in asked
        if i < min(len(reference), len(port))
    ]
    top = max(strongest, default=0.0)
    return 1.0 if top == 0 else float(2 ** int(np.clip(np.floor(np.log2(255 / top)), 0, 6)))


def _triple(
    reference: Pictures, port: Pictures, index: int, gain: float, width: int, quality: int
) -> tuple[str, str, str]:
    sides = [side[index] if index < len(side) else None for side in (reference, port)]
    left, right = (None if side is None else _fit(side, width) for side in sides)
    difference = None
    if sides[0] is not None and sides[1] is not None and sides[0].shape == sides[1].shape:
        apart = np.abs(sides[1].astype(np.float32) - sides[0]) * gain
        difference = _fit(np.clip(apart, 0, 255).astype(np.uint8), width)
    a, b, c = ("" if picture is None else jpeg(picture, quality) for picture in (left, right, difference))
    return a, b, c


def _fit(frame: Pictures, width: int) -> Pictures:
    """Shrink so that the longer side is at most `width`; small frames are enlarged by whole pixels, to stay crisp."""
    import cv2

    longer = max(frame.shape[:2])
    if longer > width:
        size = tuple(max(1, round(side * width / longer)) for side in (frame.shape[1], frame.shape[0]))
        return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    times = max(1, width // longer)
    return frame.repeat(times, axis=0).repeat(times, axis=1)


def _row(index: int, triple: tuple[str, str, str], found: ClipComparison) -> FrameRow:
    compared = index < len(found.psnr)
    ours, theirs = found.reference_defects.at(index), found.port_defects.at(index)
    return FrameRow(
        index,
        *triple,
        psnr=_decibel(float(found.psnr[index])) if compared else "–",
        ssim=number(float(found.ssim[index])) if compared else "–",
        bad=bool(compared and found.bad[index]),
        defects=tuple(name for name in theirs if name not in ours),
    )


def _decibel(value: float) -> str:
    return "equal" if np.isinf(value) else f"{value:.1f} dB"


def _curves(found: ClipComparison) -> tuple[Markup, ...]:
    """PSNR, SSIM and brightness shift per frame, with the limits and the first bad frame."""
    count = len(found.psnr)
    xs = [float(i) for i in range(count)]
    step = max(1, count // 12)
    ticks = tuple((float(i), str(i)) for i in range(0, count, step))
    rules = () if found.first_bad is None else ((float(found.first_bad), f"first bad frame {found.first_bad}"),)
    wanted = (
        ("PSNR per frame", "dB", found.psnr, found.limits.psnr),
        ("SSIM per frame", "", found.ssim, found.limits.ssim),
        ("brightness, port − reference", "levels", found.mean_shift, None),
    )
    charts = []
    for title, unit, values, limit in wanted:
        lines = [Series(title, xs, [float(v) for v in values], "error")]
        if limit is not None:
            lines.insert(0, Series(f"limit {limit:g}", xs, [limit] * count, "floor"))
        label = f"{title} ({unit})" if unit else title
        charts.append(draw(Chart(title, tuple(lines), (), "frame", label, False, ticks, (), rules, 370, 200)))
    return tuple(chart for chart in charts if chart)


def _defect_table(found: ClipComparison) -> tuple[tuple[str, str, str], ...]:
    pairs = zip(found.reference_defects.items(), found.port_defects.items(), strict=True)
    rows = [
        (name, frame_ranges(np.flatnonzero(ours)), frame_ranges(np.flatnonzero(theirs)))
        for (name, ours), (_, theirs) in pairs
    ]
    return tuple(row for row in rows if row[1] or row[2])
