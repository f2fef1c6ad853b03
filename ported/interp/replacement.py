"""Keyframes replaced by anchors or by noisy copies, for all samples of a level at once (spec 6.1 step 2, 6.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ported.interp.draws import Draws

if TYPE_CHECKING:
    from ported.interp.corruption import Corruption


@dataclass(frozen=True)
class Anchors:
    """Values of phase 1 `(b, t or K, n, d)`, and the frames they belong to `(b, K)`."""

    values: Tensor
    idx: Tensor | None = None


@dataclass(frozen=True)
class Side:
    """Samples of one level `(b,)` at this or the finer level: keyframes `(b, K)`, replaced `(b, K)`, values `(b, K, n, d)`."""

    samples: Tensor
    idx: Tensor
    replaced: Tensor | None = None
    values: Tensor | None = None


def replace_keyframes(
    z0: Tensor, sides: list[Side], draws: Draws, options: Corruption, anchors: Anchors | None, flat: bool
) -> list[Side]:
    """Values of the keyframes of all sides; decisions are drawn before noise."""
    frames = z0.shape[1]
    sides = [replace(side, values=z0[side.samples[:, None], side.idx]) for side in sides]
    if options.student_replace_prob <= 0:
        return [replace(side, replaced=torch.zeros_like(side.idx, dtype=torch.bool)) for side in sides]
    sides = [replace(side, replaced=decide(side.idx, draws, frames, options)) for side in sides]
    if anchors is None:
        return [with_noise(side, draws, options, flat) for side in sides]
    fitting = [anchors.idx is not None or anchors.values.shape[1] in (frames, side.idx.shape[1]) for side in sides]
    if not any(fitting):
        raise ValueError(f"{anchors.values.shape[1]} anchors without indices do not fit the keyframes of any level")
    if not all(fitting):
        return [with_noise(side, draws, options, flat) for side in sides]
    return [with_anchors(side, anchors, frames) for side in sides]


def decide(idx: Tensor, draws: Draws, frames: int, options: Corruption) -> Tensor:
    """Which keyframes are replaced."""
    replaced = draws.rand(*idx.shape).to(idx.device) < options.student_replace_prob
    if options.clamp_endpoints:
        replaced &= (idx > 0) & (idx < frames - 1)
    return replaced


def with_noise(side: Side, draws: Draws, options: Corruption, flat: bool) -> Side:
    """Noisy copies where a keyframe is replaced."""
    b, k, n, d = side.values.shape
    noise = draws.randn((b, k, d) if flat else (b * n, k, d), side.values.dtype).to(side.values.device)
    noise = noise.view(b, n, k, d).transpose(1, 2)
    noisy = side.values + options.student_noise_std * noise
    return replace(side, values=torch.where(side.replaced[..., None, None], noisy, side.values))


def with_anchors(side: Side, anchors: Anchors, frames: int) -> Side:
    """Anchors where a keyframe is replaced and has one."""
    given = anchors.values[side.samples]
    idx = None if anchors.idx is None else anchors.idx[side.samples]
    rows = torch.arange(len(given), device=given.device)[:, None]
    if given.shape[1] == frames:
        if idx is not None and idx.shape != side.idx.shape:
            raise ValueError(f"anchor indices {tuple(idx.shape)} do not fit keyframes {tuple(side.idx.shape)}")
        wanted = given[rows, side.idx]
        usable = side.replaced if idx is None else side.replaced & (idx == side.idx).all(dim=1, keepdim=True)
    elif idx is None:
        wanted, usable = given, side.replaced
    else:
        same = side.idx[:, :, None] == idx[:, None]
        wanted, usable = given[rows, same.int().argmax(dim=2)], side.replaced & same.any(dim=2)
    return replace(side, values=torch.where(usable[..., None, None], wanted.to(side.values.dtype), side.values))
