"""Noise-level embedding of the Waypoint port (spec A3 NoiseConditioner, A8, B10).

Precision: fp32 throughout with autocast off; the result has the dtype of the incoming sigma. The frequency table is an
ordinary non-persistent buffer, so a cast of the whole model to bf16 rounds it as it rounds the two matrices; the
builder then casts this module back to fp32, which keeps the rounded values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import MLP

N_FREQUENCIES = 256
SIGMA_SCALE = 1000.0
BASE = 10000.0


class NoiseEmbedding(nn.Module):
    """MLP(sqrt(2) * [sin, cos](1000 sigma * freq)), sigma [B, N] -> [B, N, D]."""

    frequency_table: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * N_FREQUENCIES, 4 * d_model, d_model)
        self.register_buffer("frequency_table", self.frequencies(), persistent=False)

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """[256] values from 1 to 1/10000 on a log scale, both ends included."""
        return torch.logspace(0, -1, N_FREQUENCIES, base=BASE, dtype=torch.float32, device=device)

    def reset_frequencies(self, device: torch.device) -> None:
        """Fill the table after construction on the meta device: it is not part of the checkpoint."""
        self.frequency_table = self.frequencies(device)

    def phase(self, sigma: Tensor) -> Tensor:
        """[B, N] -> [B, N, 256]."""
        return (sigma.float() * SIGMA_SCALE).unsqueeze(-1) * self.frequency_table

    def features(self, phase: Tensor) -> Tensor:
        """[B, N, 256] -> [B, N, 512], sines first."""
        return 2**0.5 * torch.cat((phase.sin(), phase.cos()), dim=-1)

    def forward(self, sigma: Tensor) -> Tensor:
        with torch.autocast(sigma.device.type, enabled=False):
            embedding = self.mlp(self.features(self.phase(sigma)))
        return embedding.to(sigma.dtype)
