"""Nested masks for a whole batch at once: ranks against the counts of all levels (spec 3.2-3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ported.interp.draws import Draws
from ported.interp.schedules import k_list

Masks = tuple[Tensor, list[Tensor]]


def indices_of(masks: Tensor) -> list[Tensor]:
    """Kept frames of every level, `(b, K_s)` each, from masks `(b, S+1, t)` with equal counts over the batch."""
    batch = len(masks)
    by_level = masks.transpose(0, 1)
    counts = by_level[:, 0].sum(dim=1).tolist()
    parts = by_level.nonzero()[:, 2].split([batch * count for count in counts])
    return [part.view(batch, -1) for part in parts]


def from_ranks(ranks: Tensor, counts: list[int]) -> Masks:
    """Keep the frames whose rank `(b, t)` is below the count of a level."""
    masks = ranks[:, None] < torch.tensor(counts, device=ranks.device)[None, :, None]
    return masks, indices_of(masks)


def inner_ranks(order: Tensor) -> Tensor:
    """Ranks `(b, t)` with the two ends first, from an order of the inner frames `(b, t−2)`."""
    batch, inner = order.shape
    ranks = torch.ones(batch, inner + 2, dtype=torch.long, device=order.device)
    ranks[:, 0] = 0
    return ranks.scatter_(1, order + 1, torch.arange(2, inner + 2, device=order.device).expand(batch, inner))


def nested_masks(
    batch: int,
    frames: int,
    k_min: int,
    levels: int,
    draws: Draws,
    schedule: str = "doubling",
    gamma: float | None = None,
) -> Masks:
    """Random nested masks with both ends. Errors: ValueError for T < 2 or S < 1."""
    if frames < 2 or levels < 1:
        raise ValueError(f"{frames} frames and {levels} levels: at least 2 and 1 are needed")
    counts = [max(k, 2) for k in k_list(frames, k_min, levels, schedule, gamma)]
    return from_ranks(inner_ranks(draws.rand(batch, frames - 2).argsort(dim=1)), counts)


def nested_masks_from_base(
    base: Tensor, frames: int, levels: int, draws: Draws, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """Refine given keyframes `(b, K)`: all samples of a level at once, one permutation each."""
    batch, k_base = base.shape
    counts = k_list(frames, k_base, levels, schedule, gamma)
    mask = torch.zeros(batch, frames, dtype=torch.bool).scatter_(1, base, True)
    found = [mask]
    for s in range(levels - 1, -1, -1):
        free = (~mask).nonzero()[:, 1].view(batch, -1)
        need = counts[s] - (frames - free.shape[1])
        if need > 0 and free.shape[1]:
            order = torch.stack([draws.randperm(free.shape[1]) for _ in range(batch)])
            mask = mask.scatter(1, free.gather(1, order[:, :need]), True)
        found.append(mask)
    masks = torch.stack(found[::-1], dim=1)
    return masks, indices_of(masks)


def nested_masks_from_logits(
    logits: Tensor, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """The ends, then inner frames by descending logit."""
    counts = k_list(logits.shape[1], k_min, levels, schedule, gamma)
    return from_ranks(inner_ranks(logits[:, 1:-1].argsort(dim=1, descending=True)), counts)


def nested_masks_from_level_logits(
    logits: Tensor, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None
) -> Masks:
    """Every level adds its own best frames. Errors: ValueError for fewer than two keyframes at the coarsest level."""
    batch, _, frames = logits.shape
    counts = k_list(frames, k_min, levels, schedule, gamma)
    if counts[-1] < 2:
        raise ValueError(f"the coarsest level has {counts[-1]} keyframes; level logits need two")
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    mask[:, 0] = mask[:, -1] = True
    found, kept = [], 2
    for s in range(levels, -1, -1):
        best = logits[:, s].masked_fill(mask, -1e9).topk(counts[s] - kept, dim=1).indices
        mask, kept = mask.scatter(1, best, True), counts[s]
        found.append(mask)
    masks = torch.stack(found[::-1], dim=1)
    return masks, indices_of(masks)


def nested_masks_of_one(frames: int, k_min: int, levels: int, draws: Draws) -> list[Tensor]:
    """Masks of one clip, doubling, a permutation of the free frames a level: bool `(t,)` each."""
    mask = torch.zeros(frames, dtype=torch.bool)
    mask[0] = mask[-1] = True
    found = []
    for s in range(levels, -1, -1):
        kept = int(mask.sum())
        need = min(frames, k_min if s == levels else 2 * kept) - kept
        free = (~mask).nonzero().flatten()
        if need > 0 and len(free):
            mask = mask.index_fill(0, free[draws.randperm(len(free))[:need]], True)
        found.append(mask)
    return found[::-1]
