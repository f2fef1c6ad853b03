"""Keyframes of phase 1 for the toy data: DDIM without noise (spec 10.1)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .denoisers import KeypointDenoiser


def alpha_bars(schedule: str = "linear", steps: int = 1000) -> Tensor:
    """Cumulative products ā of a linear or cosine noise schedule, float32 `(steps,)`."""
    if schedule == "linear":
        return (1 - torch.linspace(1e-4, 2e-2, steps)).cumprod(dim=0)
    offset = 0.008
    grid = [math.cos((i / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(steps + 1)]
    betas = torch.tensor([1 - b / a for a, b in itertools.pairwise(grid)])
    return (1 - betas.clamp(1e-8, 0.999)).cumprod(dim=0)


def ddim_times(count: int, steps: int = 1000, spacing: str = "quadratic") -> list[int]:
    """Time steps from high to low, both ends included; quadratic spacing is denser at low noise."""
    u = torch.linspace(0, 1, count)
    u = u**2 if spacing == "quadratic" else u
    return sorted({*(u * (steps - 1)).floor().long().tolist(), 0, steps - 1}, reverse=True)


def sample_keypoints(
    model: KeypointDenoiser,
    noise: Tensor,
    idx: Tensor,
    frames: int,
    known: Tensor | None = None,
    known_values: Tensor | None = None,
    count: int = 20,
    schedule: str = "linear",
    steps: int = 1000,
) -> Tensor:
    """Denoise keyframes `(b, K, d)`; known entries (bool, the same shape) are overwritten before and after each step."""
    bars = alpha_bars(schedule, steps)
    known = torch.zeros_like(noise, dtype=torch.bool) if known is None else known
    pin = lambda z: z if known_values is None else torch.where(known, known_values, z)  # noqa: E731
    times = ddim_times(count, steps)
    z = pin(noise)
    for t, following in itertools.pairwise(times):
        eps = model(z, torch.full((len(z),), t), idx, known, frames)
        x0 = (z - (1 - bars[t]).sqrt() * eps) / bars[t].sqrt()
        z = pin(bars[following].sqrt() * x0 + (1 - bars[following]).sqrt() * eps)
    return z
