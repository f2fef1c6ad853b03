"""Whole-clip mistakes that explain why two clips differ: a frame shift, swapped colours, a misread value range, a flip.

Each is tried on the frames themselves and named only if it removes at least three quarters of the squared difference.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
REMAINS = 0.25  # share of the squared difference that a named transform may leave
MAX_SHIFT = 8
SAMPLES = 24  # frames and, per side, pixels that the tests look at

# A value v in 0..255 that one side shows as slope * v + offset (then clipped), and what makes it so.
RANGES = (
    (0.5, 127.5, "[0, 1] values are read as [-1, 1]: the port's picture is washed out (V10)"),
    (2.0, -255.0, "[-1, 1] values are read as [0, 1]: the port's dark half is clipped to black (V10)"),
    (219 / 255, 16.0, "full range is written as limited (TV) range"),
    (255 / 219, -16 * 255 / 219, "limited (TV) range is expanded twice, or full range is read as limited"),
    (-1.0, 255.0, "the picture is inverted"),
)


def count_hints(reference: int, port: int) -> list[str]:
    """Say what a difference of frame counts suggests; a causal VAE turns T latent frames into 1+4(T-1) or 1+8(T-1)."""
    if reference == port:
        return []
    hints = [f"the frame counts differ: {reference} in the reference, {port} in the port"]
    longer, shorter = max(reference, port), min(reference, port)
    name = "reference" if reference > port else "port"
    return hints + [
        f"the {name} decodes {factor}T frames where the other side decodes 1+{factor}(T-1), T = {longer // factor}: "
        "the causal VAE's first frame is not treated apart (V1)"
        for factor in (4, 8)
        if longer % factor == 0 and shorter == longer - (factor - 1)
    ]


def range_hints(reference: tuple[float, float], port: tuple[float, float]) -> list[str]:
    """Say when the two sides' float values had to be read with different ranges."""
    if reference == port:
        return []
    left, right = (f"[{low:g}, {high:g}]" for low, high in (reference, port))
    return [f"the sides store different value ranges: the reference was read as {left}, the port as {right}"]


def best_shift(reference: Frames, port: Frames, bad: NDArray[np.bool_]) -> int:
    """Return k so that port frame i + k shows what bad reference frame i shows; 0 unless that is clearly so.

    It must fit better than no shift does, and than the reference's own frame i + k, since neighbours are alike.
    The median over the bad frames decides: a few broken ones (black, say) neither make a shift nor hide one.
    """
    a, b = _small(reference), _small(port)
    wanted = np.flatnonzero(bad)
    errors: dict[int, float] = {}
    for k in range(-MAX_SHIFT, MAX_SHIFT + 1):
        frames = wanted[(wanted + k >= 0) & (wanted + k < len(b))]
        if k and len(frames) >= max(2, len(wanted) / 2):
            own = a[np.clip(frames + k, 0, len(a) - 1)]
            moved, at_rest, alike = (
                float(np.median(_per_frame(a[frames], other))) for other in (b[frames + k], b[frames], own)
            )
            if moved <= REMAINS * min(at_rest, alike):
                errors[k] = moved
    return min(errors, key=lambda k: (errors[k], abs(k)), default=0)


def explain(reference: Frames, port: Frames, shift: int, bad: NDArray[np.bool_]) -> list[str]:
    """Return sentences on what would explain the difference between two clips of one picture size.

    `bad` [F] marks the frames that differ; without a shift only they are asked, since a mistake may begin late.
    """
    hints = []
    if shift:
        late, early = ("later", "earlier") if shift > 0 else ("earlier", "later")
        hints.append(
            f"the port's frame i{shift:+d} shows the reference's frame i: its content comes {abs(shift)} "
            f"frame{'s' * (abs(shift) > 1)} {late} than it should (compare it {abs(shift)} {early})"
        )
    a, b = _overlap(_pixels(reference), _pixels(port), shift)
    if not shift:
        a, b = a[bad], b[bad]
    textured = b.std(axis=(1, 2, 3)) > 2  # a flat picture is explained by anything
    a, b = a[textured], b[textured]
    before = _error(a, b)
    if len(a) == 0 or before == 0:
        return hints
    found = [(_error(a, moved), text) for moved, text in _transforms(b, port.shape)]
    found += _range_fits(a, b)
    # Of several fitting transforms the best is named; on equal terms, the first, which is the simplest.
    best = min(found, key=lambda pair: pair[0], default=(np.inf, ""))
    return [*hints, best[1]] if best[0] <= REMAINS * before else hints


def _transforms(port: NDArray[np.float32], shape: tuple[int, ...]) -> list[tuple[NDArray[np.float32], str]]:
    """Candidate corrections of the port's sampled pixels [F, h, w, 3]."""
    names: dict[tuple[int, ...], str] = {(2, 1, 0): "red and blue are swapped (BGR written as RGB)"}
    tried = [
        (port[..., list(order)], names.get(order, f"the colour channels are permuted {order}"))
        for order in permutations(range(3))
        if order != (0, 1, 2)
    ]
    tried.append((port[:, ::-1], "the picture is upside down (flip of the height axis)"))
    tried.append((port[:, :, ::-1], "the picture is mirrored (flip of the width axis)"))
    tried.append((port[::-1], "the frames run backwards"))
    if port.shape[1] == port.shape[2] and shape[1] == shape[2]:
        tried.append((port.swapaxes(1, 2), "height and width are transposed"))
    return tried


def _range_fits(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[tuple[float, str]]:
    """Known misread ranges, and a free fit of brightness and contrast, with the error that each leaves."""
    found = [(_error(np.rint(np.clip(slope * a + offset, 0, 255)), b), text) for slope, offset, text in RANGES]
    inside = (b > 1) & (b < 254)
    if inside.sum() < 64 or float(a[inside].std()) < 1:
        return found
    slope, offset = np.polyfit(a[inside], b[inside], 1)
    fitted = _error(np.rint(np.clip(slope * a + offset, 0, 255)), b)
    if slope > 0.05:  # a flat port is not a darker reference
        found.append(
            (fitted + 1e-3, f"brightness and contrast differ: port = {slope:.3f} x reference {offset:+.1f} levels")
        )
    return found


def _pixels(frames: Frames) -> NDArray[np.float32]:
    """Sample frames [F, H, W, 3] on a grid that flips onto itself; every frame is kept, so that shifts stay whole."""
    rows, columns = (
        np.rint(np.linspace(0, side - 1, min(side, SAMPLES * 2))).astype(int) for side in frames.shape[1:3]
    )
    return frames[:, rows][:, :, columns].astype(np.float32)


def _small(frames: Frames) -> NDArray[np.float32]:
    return np.asarray(_pixels(frames).mean(axis=3), np.float32)


def _overlap(
    a: NDArray[np.float32], b: NDArray[np.float32], shift: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Frames i of `a` and i + shift of `b` that both exist."""
    start, stop = max(0, -shift), min(len(a), len(b) - shift)
    return a[start : max(start, stop)], b[start + shift : max(start, stop) + shift]


def _per_frame(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.square(a - b).mean(axis=(1, 2)))


def _error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.square(a - b).mean()) if a.size else float("inf")
