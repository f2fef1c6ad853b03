"""Rotated queries and keys by pairs: whether pairs keep their lengths, by which angle the port turns them more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parity.report.media import PairView
from parity.report.views import Figure, error_heat, profile
from parity.report.wording import clean, number, percent

KEPT = 1e-3  # relative L2 of the lengths: below it a pair is a pair on both sides
PAIRINGS = {"(2i, 2i + 1)": "interleaved", "(i, i + d/2)": "half-split"}
Pairs = NDArray[np.complex128]


def pair_figure(view: PairView) -> Figure:
    """Angles where the pairs of one kind keep their lengths; else what differs, in the pairs of both kinds."""
    title = f"{clean(view.name)}, first head"
    sides = [(_pairs(view.reference, name), _pairs(view.port, name)) for name in PAIRINGS]
    moved = [_moved(ours, theirs) for ours, theirs in sides]
    best = int(np.argmin(moved))
    name = list(PAIRINGS)[best]
    if moved[best] <= KEPT:
        ours, theirs = sides[best]
        angles = np.abs(np.angle(theirs * ours.conj()))
        turned = int((angles.max(axis=1) > KEPT).sum())
        sentence = (
            f"Pairs {name} keep their lengths. The port turns them further, or less, by up to {number(float(angles.max()))} "
            f"radians, at {turned} of {len(angles)} positions."
        )
        pictures = (
            error_heat(f"angle between the sides, pairs {name}", angles, KEPT, "position", "pair"),
            profile(angles.max(axis=1), KEPT, "position"),
            profile(angles.max(axis=0), KEPT, "pair"),
        )
        return Figure(title, sentence, pictures, bool(turned), float(angles.max()))
    lengths = " and ".join(f"{percent(m)} as {name}" for name, m in zip(PAIRINGS, moved, strict=True))
    sentence = f"Pairs keep their lengths in neither pairing: they are off by {lengths}. The port combines other channels than the reference."
    heats = tuple(
        error_heat(
            f"lengths of pairs {name} differ", np.abs(np.abs(b) - np.abs(a)), KEPT, "position", "pair", width=420
        )
        for name, (a, b) in zip(PAIRINGS, sides, strict=True)
    )
    return Figure(title, sentence, heats, True, float(min(moved)))


def _pairs(values: NDArray[np.float64], name: str) -> Pairs:
    """[positions, channels] as complex [positions, channels / 2]."""
    if PAIRINGS[name] == "interleaved":
        return np.asarray(values[:, ::2] + 1j * values[:, 1::2])
    half = values.shape[1] // 2
    return np.asarray(values[:, :half] + 1j * values[:, half:])


def _moved(ours: Pairs, theirs: Pairs) -> float:
    """Relative L2 between the lengths of both sides' pairs; infinite where one is no number."""
    whole = float(np.linalg.norm(np.abs(ours))) or 1.0
    moved = float(np.linalg.norm(np.abs(theirs) - np.abs(ours))) / whole
    return moved if np.isfinite(moved) else float("inf")
