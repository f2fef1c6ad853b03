"""Context windows over the frames of a video (spec 8, step 7)."""

import math
from collections.abc import Iterator

SHIFT = 3  # frames by which all windows move from step to step


def ordered_halving(step: int) -> float:
    """Bit reversal of `step` as a fraction: 0, 1/2, 1/4, 3/4, 1/8, …"""
    return int(f"{step:064b}"[::-1], 2) / (1 << 64)


def uniform(step: int, frames: int, context: int, stride: int = 1, overlap: int = 3) -> Iterator[list[int]]:
    """Yield windows of `context` frame numbers, `overlap` shared with the next; the loop is closed (modulo `frames`).

    The pipelines use `step=0, stride=1`.
    """
    if frames <= context:
        yield list(range(frames))
        return
    strides = min(stride, math.ceil(math.log2(frames / context)) + 1)
    fraction = ordered_halving(step)
    pad = round(frames * fraction)
    for dilation in (1 << i for i in range(strides)):
        for start in range(int(fraction * dilation) + pad, frames + pad, context * dilation - overlap):
            yield [(start + dilation * i) % frames for i in range(context)]


def shifted(windows: list[list[int]], step: int, frames: int) -> list[list[int]]:
    """The windows at a step: every number moved by three frames a step, modulo `frames`."""
    return [[(index + SHIFT * step) % frames for index in window] for window in windows]
