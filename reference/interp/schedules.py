"""How many keyframes a level has, and where base keyframes lie (spec 3.1, 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from .draws import Draws

SCHEDULES = ("doubling", "linear", "geom")
LONGEST_GAP = 16


def k_list(frames: int, k_min: int, levels: int, schedule: str = "doubling", gamma: float | None = None) -> list[int]:
    """Number of keyframes of every level 0..S; K_S = min(K_min, T) and every finer level has more, up to T.

    Errors: ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown keyframe schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    coarsest = min(k_min, frames)
    if levels <= 0:
        return [coarsest]
    if gamma is None:
        gamma = (frames / coarsest) ** (1 / levels)
    counts = {levels: coarsest}
    for s in range(levels - 1, -1, -1):
        target = {
            "doubling": 2 * counts[s + 1],
            "linear": round(coarsest + (levels - s) / levels * (frames - coarsest)),
            "geom": round(coarsest * gamma ** (levels - s)),
        }[schedule]
        counts[s] = min(frames, max(counts[s + 1] + 1, target))
    return [counts[s] for s in range(levels + 1)]


def uniform_indices(
    batch: int, frames: int, count: int, draws: Draws, ensure_endpoints: bool = True, jitter: float = 0.0
) -> Tensor:
    """Evenly spaced keyframes with optional jitter in [0, 1], int64 `(b, K)`, strictly increasing.

    One draw `(b, K)`, made only with jitter; the two ends never move.
    """
    count = min(count, frames)
    base = torch.linspace(0, frames - 1, count)
    moves = torch.zeros(batch, count)
    if jitter > 0 and count > 2 and frames > 2:
        spacing = (frames - 1) / (count - 1)
        moves = (draws.rand(batch, count) - 0.5) * 2 * spacing * jitter * 0.5
        moves[:, 0] = 0
        moves[:, -1] = 0
    return torch.stack([separate((base + move).round().long(), frames, ensure_endpoints) for move in moves])


def separate(index: Tensor, frames: int, ensure_endpoints: bool) -> Tensor:
    """Make rounded positions `(K,)` strictly increasing inside [0, T-1], the ends at 0 and T-1."""
    places = [min(max(int(i), 0), frames - 1) for i in index]

    def force_ends() -> None:
        if ensure_endpoints:
            places[0], places[-1] = 0, frames - 1

    force_ends()
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + 1)
    for k in range(len(places) - 2, -1, -1):
        places[k] = min(places[k], places[k + 1] - 1)
    places = [min(max(i, 0), frames - 1) for i in places]
    force_ends()
    return torch.tensor(places)


def random_indices(batch: int, frames: int, count: int, draws: Draws, ensure_endpoints: bool = True) -> Tensor:
    """Random keyframes, int64 `(b, K)` ascending: the lowest of one uniform score a frame, plus the ends."""
    rows = []
    for scores in draws.rand(batch, frames - 2 if ensure_endpoints else frames):
        order = scores.argsort()
        chosen = [0, frames - 1, *(order[: count - 2] + 1).tolist()] if ensure_endpoints else order[:count].tolist()
        rows.append(torch.tensor(sorted(chosen)))
    return torch.stack(rows)


def random_mask(frames: int, count: int, draws: Draws, ensure_endpoints: bool = True) -> Tensor:
    """The same law for one sample as a mask, bool `(t,)`, from a random permutation."""
    mask = torch.zeros(frames, dtype=torch.bool)
    if ensure_endpoints:
        mask[[0, frames - 1]] = True
        mask[draws.randperm(frames - 2)[: count - 2] + 1] = True
    else:
        mask[draws.randperm(frames)[:count]] = True
    return mask


def keyframe_mask(frames: int, mode: str, draws: Draws) -> Tensor:
    """Keyframes every `stride` frames, or at random with gaps of at most 16, bool `(t,)`; `mixed` flips a coin first."""
    if mode == "mixed":
        mode = "stride" if draws.rand(1).item() < 0.5 else "random"
    mask = torch.zeros(frames, dtype=torch.bool)
    mask[[0, frames - 1]] = True
    if mode == "stride":
        mask[:: int(draws.randint(4, LONGEST_GAP + 1, 1))] = True
        return mask
    if mode != "random":
        raise ValueError(f"unknown keyframe mode {mode!r}; there are stride, random, mixed")
    probability = 0.05 + 0.15 * draws.rand(1).item()
    mask[1:-1] = draws.rand(frames - 2) < probability
    last = 0
    for t in range(1, frames):
        if t - last > LONGEST_GAP:
            mask[last + LONGEST_GAP] = True
            last += LONGEST_GAP
        if mask[t]:
            last = t
    return mask
