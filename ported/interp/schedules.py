"""Numbers and places of keyframes as tensors over the batch (spec 3.1, 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from ported.interp.draws import Draws

MAX_GAP = 16


def k_list(frames: int, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None) -> list[int]:
    """Keyframes of levels 0..S. Errors: ValueError for an unknown schedule."""
    top = min(k_min, frames)
    gamma = gamma or (frames / top) ** (1 / max(levels, 1))
    targets = {
        "doubling": lambda step, prev: 2 * prev,
        "linear": lambda step, prev: round(top + step / levels * (frames - top)),
        "geom": lambda step, prev: round(top * gamma**step),
    }
    if schedule not in targets:
        raise ValueError(f"unknown schedule {schedule!r}, expected one of {sorted(targets)}")
    counts = [top]
    for step in range(1, max(levels, 0) + 1):
        counts.append(min(frames, max(counts[-1] + 1, targets[schedule](step, counts[-1]))))
    return counts[::-1]


def uniform_indices(
    batch: int, frames: int, count: int, draws: Draws, ensure_endpoints: bool = True, jitter: float = 0.0
) -> Tensor:
    """Evenly spaced keyframes `(b, K)`, jittered on request, made strictly increasing by two running extrema."""
    count = min(count, frames)
    places = torch.linspace(0, frames - 1, count).repeat(batch, 1)
    if jitter > 0 and count > 2 and frames > 2:
        spacing = (frames - 1) / (count - 1)
        moves = (draws.rand(batch, count) - 0.5) * 2 * spacing * jitter * 0.5
        places[:, 1:-1] += moves[:, 1:-1]
    idx = force_ends(places.round().long().clamp(0, frames - 1), frames, ensure_endpoints)
    steps = torch.arange(count)
    idx = (idx - steps).cummax(dim=1).values + steps
    idx = ((idx - steps).flip(1).cummin(dim=1).values).flip(1) + steps
    return force_ends(idx.clamp(0, frames - 1), frames, ensure_endpoints)


def force_ends(idx: Tensor, frames: int, ensure_endpoints: bool) -> Tensor:
    """Put the outermost keyframes on the ends of the clip."""
    if ensure_endpoints:
        idx[:, 0], idx[:, -1] = 0, frames - 1
    return idx


def random_indices(batch: int, frames: int, count: int, draws: Draws, ensure_endpoints: bool = True) -> Tensor:
    """Random keyframes `(b, K)`, ascending."""
    if not ensure_endpoints:
        return draws.rand(batch, frames).argsort(dim=1)[:, :count].sort(dim=1).values
    inner = draws.rand(batch, frames - 2).argsort(dim=1)[:, : count - 2] + 1
    ends = torch.tensor([[0, frames - 1]]).expand(batch, 2)
    return torch.cat([ends, inner], dim=1).sort(dim=1).values


def random_mask(frames: int, count: int, draws: Draws, ensure_endpoints: bool = True) -> Tensor:
    """Random keyframes of one clip as a mask `(t,)`."""
    mask = torch.zeros(frames, dtype=torch.bool)
    if not ensure_endpoints:
        return mask.index_fill(0, draws.randperm(frames)[:count], True)
    mask[0] = mask[-1] = True
    return mask.index_fill(0, draws.randperm(frames - 2)[: count - 2] + 1, True)


def keyframe_mask(frames: int, mode: str, draws: Draws) -> Tensor:
    """Keyframes by stride, at random with bounded gaps, or either (mixed): bool `(t,)`."""
    if mode not in ("stride", "random", "mixed"):
        raise ValueError(f"unknown mode {mode!r}, expected stride, random or mixed")
    if mode == "mixed":
        mode = "stride" if float(draws.rand(1)) < 0.5 else "random"
    t = torch.arange(frames)
    ends = (t == 0) | (t == frames - 1)
    if mode == "stride":
        return ends | (t % int(draws.randint(4, MAX_GAP + 1, 1)) == 0)
    probability = 0.05 + 0.15 * float(draws.rand(1))
    kept = ends.clone()
    kept[1:-1] = draws.rand(frames - 2) < probability
    last = torch.where(kept, t, 0).cummax(dim=0).values
    return kept | ((t - last) % MAX_GAP == 0)
