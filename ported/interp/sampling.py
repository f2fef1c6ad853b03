"""Refinement from the coarsest level down (spec 10)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ported.interp.conditioning import anneal_confidence, anneal_factor
from ported.interp.draws import Draws
from ported.interp.refiners import Refiner


@dataclass(frozen=True)
class Sampling:
    """Options of the loop."""

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
        if self.clamp_policy not in ("none", "all_anchors", "all_anchors_level"):
            raise ValueError(f"unknown clamp policy {self.clamp_policy!r}")


class Level(NamedTuple):
    """One level of a run."""

    level: int
    x_in: Tensor
    conf_s: Tensor | None
    conf_prev: Tensor | None
    delta: Tensor
    strength: float
    after_soft: Tensor
    x_out: Tensor


def soft_strength(level: int, levels: int, schedule: str, most: float) -> float:
    """λ of the soft clamp."""
    if schedule not in ("linear", "cosine"):
        return 0.0
    return most * float(anneal_factor(torch.tensor(level, dtype=torch.float64), levels, schedule))


def over(part: Tensor, x: Tensor) -> Tensor:
    """Maps of frames over the axes of x."""
    return part[(...,) + (None,) * (x.dim() - part.dim())]


def soft_clamp(x: Tensor, x_ref: Tensor, confidence: Tensor, strength: float, dims: str = "all") -> Tensor:
    """Pull toward the reference by strength and confidence."""
    moved = torch.lerp(x, x_ref, over(strength * confidence, x).to(x.dtype).expand_as(x))
    return moved if dims == "all" else torch.cat((moved[..., :2], x[..., 2:]), dim=-1)


def hard_clamp(x: Tensor, x_ref: Tensor, mask: Tensor, dims: str = "all") -> Tensor:
    """Put the reference at the frames of a mask."""
    moved = torch.where(over(mask, x), x_ref, x)
    return moved if dims == "all" else torch.cat((moved[..., :2], x[..., 2:]), dim=-1)


def level_confidence(mask: Tensor, level: int, options: Sampling) -> Tensor:
    """Annealed confidence of a level."""
    raw = options.conf_missing + mask.float() * (options.conf_anchor - options.conf_missing)
    return anneal_confidence(raw, mask.new_full((len(mask),), level, dtype=torch.long), options.levels, options.anneal)


def renoise(x: Tensor, mask: Tensor, counts: tuple[int, int], options: Sampling, draws: Draws) -> Tensor:
    """Noise on missing frames, scaled by the share of keyframes."""
    sigma = options.sigma_max * (counts[0] / counts[1]) ** options.sigma_power
    scale = options.renoise * min(max(sigma, options.sigma_min), options.sigma_max)
    return torch.where(over(mask, x), x, x + scale * draws.randn(x.shape, x.dtype).to(x.device))


def refine_levels(
    refiner: Refiner, x_ref: Tensor, masks_levels: Tensor, options: Sampling, draws: Draws | None = None
) -> Iterator[Level]:
    """Yield every level of a run that starts at the interpolation x_ref `(b, t, ...)`; masks `(b, S+1, t)`."""
    x, top, adjacent = x_ref, options.levels, options.mode == "adj"
    for s in range(top, 0 if adjacent else top - 1, -1):
        mask_s, mask_prev = masks_levels[:, s], masks_levels[:, s - 1] if adjacent else None
        conf_s, conf_prev = level_confidences(mask_s, mask_prev, s, options)
        delta = refiner.delta(x, mask_s.new_full((len(x),), s, dtype=torch.long), mask_s, mask_prev, conf_s, conf_prev)
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
            out = hard_clamp(soft, x_ref, clamp_mask(masks_levels, s, options), options.dims)
        yield Level(s, x, conf_s, conf_prev, delta, strength, soft, out)
        x = out


def level_confidences(
    mask_s: Tensor, mask_prev: Tensor | None, level: int, options: Sampling
) -> tuple[Tensor | None, Tensor | None]:
    """Confidences of a level and of the next finer one."""
    if not options.with_confidence:
        return None, None
    coarser = level_confidence(mask_s, level, options)
    return coarser, None if mask_prev is None else level_confidence(mask_prev, level - 1, options)


def clamp_mask(masks_levels: Tensor, level: int, options: Sampling) -> Tensor:
    """Frames that the hard clamp holds: those given at the coarsest level, or those of this level."""
    return masks_levels[:, options.levels if options.clamp_policy == "all_anchors" else level]


def refine(
    refiner: Refiner, x_ref: Tensor, masks_levels: Tensor, options: Sampling, draws: Draws | None = None
) -> Tensor:
    """The clip after the last level."""
    x = x_ref
    for level in refine_levels(refiner, x_ref, masks_levels, options, draws):
        x = level.x_out
    return x
