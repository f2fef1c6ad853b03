"""From an interpolated clip to a refined one, level by level (spec 10).

Precision: clips keep their dtype; confidences are float32 and are cast to it where they meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .conditioning import anneal_confidence
from .draws import Draws
from .refiners import Refiner

POLICIES = ("none", "all_anchors", "all_anchors_level")


@dataclass(frozen=True)
class Sampling:
    """How to sample. `renoise` adds noise to missing frames after every level (off: 0)."""

    mode: str = "adj"
    levels: int = 4
    with_confidence: bool = True
    conf_anchor: float = 0.5
    conf_missing: float = 0.0
    anneal: str = "linear"
    soft_clamp: bool = True
    soft_clamp_schedule: str = "linear"
    soft_clamp_max: float = 0.3
    clamp_policy: str = "none"
    dims: str = "all"
    renoise: float = 0.0
    sigma_max: float = 0.08
    sigma_min: float = 0.012
    sigma_power: float = 0.75

    def __post_init__(self) -> None:
        if self.clamp_policy not in POLICIES:
            raise ValueError(f"unknown clamp policy {self.clamp_policy!r}; there are {', '.join(POLICIES)}")


class Level(NamedTuple):
    """What one level did."""

    level: int
    x_in: Tensor
    conf_s: Tensor | None
    conf_prev: Tensor | None
    delta: Tensor
    strength: float
    after_soft: Tensor
    x_out: Tensor


def soft_strength(level: int, levels: int, schedule: str, most: float) -> float:
    """λ of the soft clamp: 0 at the coarsest level, `most` at level 0."""
    if schedule == "linear":
        return most * (1 - level / levels)
    return most * 0.5 * (1 + math.cos(math.pi * level / levels)) if schedule == "cosine" else 0.0


def spread(part: Tensor, x: Tensor) -> Tensor:
    """A map of frames `(b, t)` with as many axes as x."""
    return part.view(*part.shape, *[1] * (x.dim() - part.dim()))


def soft_clamp(x: Tensor, x_ref: Tensor, confidence: Tensor, strength: float, dims: str = "all") -> Tensor:
    """`x + λ conf (x_ref − x)`; dims "pos" moves the first two features only."""
    moved = x + (strength * spread(confidence, x)).to(x.dtype) * (x_ref - x)
    return moved if dims == "all" else torch.cat([moved[..., :2], x[..., 2:]], dim=-1)


def hard_clamp(x: Tensor, x_ref: Tensor, mask: Tensor, dims: str = "all") -> Tensor:
    """Put x_ref at the frames of a mask `(b, t)`."""
    out = x.clone()
    for b, t in mask.nonzero().tolist():
        if dims == "all":
            out[b, t] = x_ref[b, t]
        else:
            out[b, t, ..., :2] = x_ref[b, t, ..., :2]
    return out


def level_confidence(mask: Tensor, level: int, options: Sampling) -> Tensor:
    """Annealed confidence of a level from its mask: float32 `(b, t)`."""
    raw = options.conf_missing + mask.float() * (options.conf_anchor - options.conf_missing)
    return anneal_confidence(raw, torch.full((len(mask),), level), options.levels, options.anneal)


def renoise(x: Tensor, mask: Tensor, counts: tuple[int, int], options: Sampling, draws: Draws) -> Tensor:
    """Add noise outside the mask, less at finer levels; counts: keyframes of the coarsest and of this level."""
    sigma = options.sigma_max * (counts[0] / counts[1]) ** options.sigma_power
    sigma = min(max(sigma, options.sigma_min), options.sigma_max) * options.renoise
    noise = draws.randn(x.shape, x.dtype) * sigma
    return x + noise * spread(~mask, x).to(x.dtype)


def refine_levels(
    refiner: Refiner, x_ref: Tensor, masks_levels: Tensor, options: Sampling, draws: Draws | None = None
) -> Iterator[Level]:
    """Refine an interpolated clip from the coarsest level down, yielding what every level did.

    x_ref: `(b, t, ...)`, the interpolation of the given keyframes; masks_levels: `(b, S+1, t)`, in x0 mode only level S
    is used. The clamp masks are those of the coarsest level, or of each level with `all_anchors_level`.
    """
    x, top = x_ref, options.levels
    levels = range(top, 0, -1) if options.mode == "adj" else (top,)
    for s in levels:
        mask_s = masks_levels[:, s]
        mask_prev = masks_levels[:, s - 1] if options.mode == "adj" else None
        conf_s = level_confidence(mask_s, s, options) if options.with_confidence else None
        conf_prev = None
        if options.with_confidence and mask_prev is not None:
            conf_prev = level_confidence(mask_prev, s - 1, options)
        level = torch.full((len(x),), s)
        delta = refiner.delta(x, level, mask_s, mask_prev, conf_s, conf_prev)
        moved = x + delta
        if options.renoise > 0 and draws is not None:
            counts = (int(masks_levels[0, top].sum()), int(mask_s[0].sum()))
            moved = renoise(moved, mask_s, counts, options, draws)
        strength = soft_strength(s, top, options.soft_clamp_schedule, options.soft_clamp_max)
        soft = moved
        if options.soft_clamp and conf_s is not None:
            soft = soft_clamp(moved, x_ref, conf_s, strength, options.dims)
        out = soft
        if options.clamp_policy != "none":
            out = hard_clamp(
                soft, x_ref, masks_levels[:, top] if options.clamp_policy == "all_anchors" else mask_s, options.dims
            )
        yield Level(s, x, conf_s, conf_prev, delta, strength, soft, out)
        x = out


def refine(
    refiner: Refiner, x_ref: Tensor, masks_levels: Tensor, options: Sampling, draws: Draws | None = None
) -> Tensor:
    """The refined clip."""
    x = x_ref
    for level in refine_levels(refiner, x_ref, masks_levels, options, draws):
        x = level.x_out
    return x
