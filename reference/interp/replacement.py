"""Keyframes that are not the clean frames: phase-1 anchors, or noisy copies that stand for them (spec 6.1 step 2, 6.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .draws import Draws

if TYPE_CHECKING:
    from .corruption import Corruption


@dataclass(frozen=True)
class Anchors:
    """Values of phase 1: one for every frame `(b, t, n, d)`, or for the frames `idx` `(b, K)`: `(b, K, n, d)`."""

    values: Tensor
    idx: Tensor | None = None


@dataclass(frozen=True)
class Side:
    """One level of the samples that are made together: keyframes `(b, K)`, which were replaced, values `(b, K, n, d)`."""

    samples: list[int]
    idx: Tensor
    replaced: Tensor | None = None
    values: Tensor | None = None


def replace_keyframes(
    z0: Tensor, sides: list[Side], draws: Draws, options: Corruption, anchors: Anchors | None, flat: bool
) -> list[Side]:
    """Decide for every side which keyframes are replaced and by what. All decisions are drawn first, then all noise."""
    clean = [
        replace(side, values=torch.stack([z0[b, row] for b, row in zip(side.samples, side.idx, strict=True)]))
        for side in sides
    ]
    if options.student_replace_prob <= 0:
        return [replace(side, replaced=torch.zeros_like(side.idx, dtype=torch.bool)) for side in clean]
    decided = [
        replace(side, replaced=decide(side.idx, draws.rand(*side.idx.shape), z0.shape[1], options)) for side in clean
    ]
    fitting = None if anchors is None else [fits(anchors, side, z0.shape[1]) for side in decided]
    if anchors is None or fitting is None:
        return [with_noise(side, draws, options, flat) for side in decided]
    if not any(fitting):
        raise ValueError(
            f"{anchors.values.shape[1]} anchors without indices fit no level with {[s.idx.shape[1] for s in sides]} keyframes"
        )
    if not all(fitting):
        return [with_noise(side, draws, options, flat) for side in decided]
    return [with_anchors(side, anchors, z0.shape[1]) for side in decided]


def decide(idx: Tensor, chance: Tensor, frames: int, options: Corruption) -> Tensor:
    """Replace a keyframe when its number is below the probability; clamped ends never."""
    replaced = chance < options.student_replace_prob
    if options.clamp_endpoints:
        replaced = replaced & (idx != 0) & (idx != frames - 1)
    return replaced


def with_noise(side: Side, draws: Draws, options: Corruption, flat: bool) -> Side:
    """Replace by a noisy copy; the noise is drawn for all keyframes of every token, sample-major."""
    b, k, n, d = side.values.shape
    noise = draws.randn((b, k, d) if flat else (b * n, k, d), side.values.dtype).view(b, n, k, d)
    values = side.values.clone()
    for row, column in side.replaced.nonzero().tolist():
        values[row, column] += options.student_noise_std * noise[row, :, column]
    return replace(side, values=values)


def fits(anchors: Anchors, side: Side, frames: int) -> bool:
    """Whether anchors say something about the keyframes of a side."""
    return anchors.idx is not None or anchors.values.shape[1] in (frames, side.idx.shape[1])


def with_anchors(side: Side, anchors: Anchors, frames: int) -> Side:
    """Replace by the anchor of the frame, where there is one. What was decided stays, also where there was none."""
    full = anchors.values.shape[1] == frames
    if full and anchors.idx is not None and anchors.idx[side.samples].shape != side.idx.shape:
        raise ValueError(
            f"anchors for all frames with indices {tuple(anchors.idx.shape)}: a level of {side.idx.shape[1]} keyframes needs as many"
        )
    values = side.values.clone()
    for row, b in enumerate(side.samples):
        given = None if anchors.idx is None else anchors.idx[b].tolist()
        if full and given is not None and given != side.idx[row].tolist():
            continue
        for column, t in enumerate(side.idx[row].tolist()):
            if not side.replaced[row, column]:
                continue
            if full:
                values[row, column] = anchors.values[b, t]
            elif given is None:
                values[row, column] = anchors.values[b, column]
            elif t in given:
                values[row, column] = anchors.values[b, given.index(t)]
    return replace(side, values=values)
