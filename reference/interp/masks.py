"""Nested keyframe masks: every level keeps what the coarser ones keep (spec 3.2-3.4).

All builders return `masks_levels` bool `(b, S+1, t)` and `idx_levels`, one int64 `(b, K_s)` a level, ascending.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .draws import Draws
from .schedules import k_list

Masks = tuple[Tensor, list[Tensor]]
TAKEN = -1e9


def from_sets(chosen: list[list[set[int]]], frames: int) -> Masks:
    """Masks and indices from the kept frames of every sample and level."""
    masks = torch.zeros(len(chosen), len(chosen[0]), frames, dtype=torch.bool)
    for b, levels in enumerate(chosen):
        for s, kept in enumerate(levels):
            masks[b, s, sorted(kept)] = True
    indices = [torch.tensor([sorted(levels[s]) for levels in chosen]) for s in range(len(chosen[0]))]
    return masks, indices


def nested_masks(
    batch: int,
    frames: int,
    k_min: int,
    levels: int,
    draws: Draws,
    schedule: str = "doubling",
    gamma: float | None = None,
) -> Masks:
    """Random nested masks with both ends: one uniform score `(b, T-2)` orders the inner frames of a sample (3.2).

    Errors: ValueError for T < 2 or S < 1.
    """
    if frames < 2 or levels < 1:
        raise ValueError(f"nested masks need at least 2 frames and 1 level, got {frames} and {levels}")
    counts = k_list(frames, k_min, levels, schedule, gamma)
    chosen = []
    for scores in draws.rand(batch, frames - 2):
        order = (scores.argsort() + 1).tolist()
        chosen.append([{0, frames - 1, *order[: max(k - 2, 0)]} for k in counts])
    return from_sets(chosen, frames)


def nested_masks_from_base(
    base: Tensor, frames: int, levels: int, draws: Draws, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """Refine given keyframes `(b, K)`, distinct within a sample, which stay kept at every level (3.3)."""
    _batch, k_base = base.shape
    counts = k_list(frames, k_base, levels, schedule, gamma)
    kept = [[set() for _ in range(levels)] + [set(row.tolist())] for row in base]
    for s in range(levels - 1, -1, -1):
        for sample in kept:
            coarser = sample[s + 1]
            free = [t for t in range(frames) if t not in coarser]
            need = counts[s] - len(coarser)
            added: set[int] = set()
            if need > 0 and free:
                order = draws.randperm(len(free)).tolist()
                added = {free[i] for i in order[:need]}
            sample[s] = coarser | added
    return from_sets(kept, frames)


def nested_masks_from_logits(
    logits: Tensor, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """Keep the ends, then the inner frames by descending logit `(b, t)` (3.4)."""
    frames = logits.shape[1]
    counts = k_list(frames, k_min, levels, schedule, gamma)
    chosen = []
    for row in logits:
        inner = (row[1:-1].argsort(descending=True) + 1).tolist()
        order = [0, frames - 1, *inner]
        chosen.append([set(order[:k]) for k in counts])
    return from_sets(chosen, frames)


def nested_masks_from_level_logits(
    logits: Tensor, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """The same with logits `(b, S+1, t)` of every level: each adds its own best frames to the coarser ones (3.4).

    Errors: ValueError when the coarsest level has fewer than two keyframes.
    """
    frames = logits.shape[2]
    counts = k_list(frames, k_min, levels, schedule, gamma)
    if counts[levels] < 2:
        raise ValueError(f"level logits need at least two keyframes at the coarsest level, got {counts[levels]}")
    chosen = []
    for sample in logits:
        kept = {0, frames - 1}
        at_level: dict[int, set[int]] = {}
        for s in range(levels, -1, -1):
            scores = sample[s].clone()
            scores[sorted(kept)] = TAKEN
            kept = kept | set(scores.argsort(descending=True)[: counts[s] - len(kept)].tolist())
            at_level[s] = kept
        chosen.append([at_level[s] for s in range(levels + 1)])
    return from_sets(chosen, frames)


def nested_masks_of_one(frames: int, k_min: int, levels: int, draws: Draws) -> list[Tensor]:
    """Masks of one sample, doubling, with a new permutation of the free frames at every level (3.5): bool `(t,)` each."""
    kept: set[int] = {0, frames - 1}
    masks: dict[int, Tensor] = {}
    for s in range(levels, -1, -1):
        target = min(frames, k_min if s == levels else 2 * len(kept))
        free = [t for t in range(frames) if t not in kept]
        if free and target > len(kept):
            order = draws.randperm(len(free)).tolist()
            kept = kept | {free[i] for i in order[: target - len(kept)]}
        mask = torch.zeros(frames, dtype=torch.bool)
        mask[sorted(kept)] = True
        masks[s] = mask
    return [masks[s] for s in range(levels + 1)]
