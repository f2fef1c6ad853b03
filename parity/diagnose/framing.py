"""Pictures framed otherwise: the port shows another crop of the picture, or squashes what the reference crops (C6)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .evidence import Evidence, Explanation, Hypothesis
from .fits import comparable

LARGEST = 64  # pixels a side; larger pictures are averaged down first
SCALES = tuple(0.4 * 1.1**i for i in range(20))  # 0.4 … 2.45
OFFSETS = 17
PROOF = 0.5  # correlation of what is left without the local means; unrelated pictures stay below 0.2


def framed(ev: Evidence) -> Iterator[Explanation]:
    """P(u) = R(s·u + t) along rows and columns: scales and offsets are searched, details must agree (C6)."""
    if ev.kind not in {"input", "frame"} or not comparable(ev, 256) or ev.r.ndim not in (3, 4) or ev.error < 0.05:
        return
    if ev.r.shape[-3] not in (1, 3, 4) or min(ev.r.shape[-2:]) < 16:
        return
    r, p = (_details(x) for x in (ev.r, ev.p))
    still = (1.0, 0.0)
    rows, columns = still, still
    before = _correlation(r, p, rows, columns)
    for options in (_options, _near):
        columns = max(options(columns), key=lambda one: _correlation(r, p, rows, one))
        rows = max(options(rows), key=lambda one: _correlation(r, p, one, columns))
    after = _correlation(r, p, rows, columns)
    moved = any(abs(s - 1) > 0.03 or abs(t) > 0.03 for s, t in (rows, columns))
    if after < PROOF or after < before + 0.25 or not moved:
        return
    said = " and ".join(
        f"{name} {100 * t:.0f} % to {100 * (s + t):.0f} % of R's"
        for name, (s, t) in (("rows", rows), ("columns", columns))
        if abs(s - 1) > 0.03 or abs(t) > 0.03
    )
    text = f"the picture is framed otherwise: P shows {said} (details correlate {after:.2f}, unmoved {before:.2f}): another crop or resize"
    yield Explanation(text, 1 - after * after, 0.9, {"rows": rows, "columns": columns, "correlation": after})


def _near(found: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """Yield finer steps around a scale and offset, about the same middle."""
    scale, offset = found
    for i in range(-6, 7):
        finer = scale * (1 + 0.01 * i)
        yield from ((finer, offset + (scale - finer) / 2 + 0.008 * j) for j in range(-6, 7))


def _options(_: tuple[float, float]) -> Iterator[tuple[float, float]]:
    yield 1.0, 0.0
    for scale in SCALES:
        low, high = min(0.0, 1 - scale) - 0.15, max(0.0, 1 - scale) + 0.15
        for i in range(OFFSETS):
            yield scale, low + (high - low) * i / (OFFSETS - 1)


def _details(x: Tensor) -> Tensor:
    """Bring pictures to [n, h, w] of at most LARGEST a side, mean of the colours, without local means."""
    grey = x.reshape(-1, *x.shape[-3:]).mean(1, keepdim=True)[:4]
    size = [min(n, LARGEST) for n in grey.shape[-2:]]
    small = functional.interpolate(grey, size, mode="area")
    return (small - functional.avg_pool2d(small, 7, 1, 3, count_include_pad=False))[:, 0]


def _moving(size: int, scale: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return the linear interpolation matrix [size, size] of u -> scale·u + offset, and which places stay inside."""
    place = (scale * (torch.arange(size, dtype=torch.float64) + 0.5) / size + offset) * size - 0.5
    inside = (place >= 0) & (place <= size - 1)
    low = place.floor().clamp(0, size - 2)
    part = (place - low).clamp(0, 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    row = torch.arange(size)
    matrix[row, low.long()] = 1 - part
    matrix[row, low.long() + 1] += part
    return matrix, inside


def _correlation(r: Tensor, p: Tensor, rows: tuple[float, float], columns: tuple[float, float]) -> float:
    """Correlate P with R moved along both axes, over what stays inside (at least a third of each axis)."""
    down, inside_rows = _moving(r.shape[-2], *rows)
    across, inside_columns = _moving(r.shape[-1], *columns)
    if 3 * int(inside_rows.sum()) < len(inside_rows) or 3 * int(inside_columns.sum()) < len(inside_columns):
        return 0.0
    moved = (down @ r @ across.T)[:, inside_rows][:, :, inside_columns]
    kept = p[:, inside_rows][:, :, inside_columns]
    norm = float(torch.linalg.vector_norm(moved) * torch.linalg.vector_norm(kept))
    return float((moved * kept).sum()) / norm if norm > 0 else 0.0


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("framed", "C6", framed, 0.6),)
