"""Deterministic DDIM for phase-1 keyframes (spec 10.1)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ported.interp.denoisers import KeypointDenoiser


def alpha_bars(schedule: str = "linear", steps: int = 1000) -> Tensor:
    """ā of every step, float32."""
    if schedule == "linear":
        return torch.cumprod(1 - torch.linspace(1e-4, 2e-2, steps), dim=0)
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2).square()
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).float().clamp(1e-8, 0.999), dim=0)


def ddim_times(count: int, steps: int = 1000, spacing: str = "quadratic") -> list[int]:
    """Descending steps with both ends."""
    u = torch.linspace(0, 1, count) ** (2 if spacing == "quadratic" else 1)
    ends = torch.tensor([0.0, steps - 1.0])
    return torch.cat((u * (steps - 1), ends)).floor().long().unique().flip(0).tolist()


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
    """Keyframes `(b, K, d)` from noise; known entries are held."""
    bars = alpha_bars(schedule, steps)
    known = torch.zeros_like(noise, dtype=torch.bool) if known is None else known
    held = noise if known_values is None else known_values
    z = torch.where(known, held, noise)
    times = ddim_times(count, steps)
    for t, following in itertools.pairwise(times):
        eps = model(z, torch.full((len(z),), t, device=z.device), idx, known, frames)
        now, then = bars[t], bars[following]
        x0 = (z - (1 - now).sqrt() * eps) / now.sqrt()
        z = torch.where(known, held, then.sqrt() * x0 + (1 - then).sqrt() * eps)
    return z
