"""Which frames go together (spec 8, step 7)."""

from __future__ import annotations

STEP_SHIFT = 3


def closed_windows(length: int, size: int, overlap: int) -> list[list[int]]:
    """Windows of `size` frames that start every `size − overlap`; the last ones wrap around to the beginning."""
    if length <= size:
        return [list(range(length))]
    return [[(start + i) % length for i in range(size)] for start in range(0, length, size - overlap)]


def windows_at(windows: list[list[int]], step: int, length: int) -> list[list[int]]:
    """All windows, moved by three frames a step."""
    return [[(frame + STEP_SHIFT * step) % length for frame in window] for window in windows]
