"""DDIM with v-prediction and zero terminal SNR (spec 7)."""

import numpy as np
import torch
from torch import Tensor

from .config import SchedulerConfig


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale √ᾱ so that the last is 0 and the first stays; return the betas of that: (t,) -> (t,)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    bar = root**2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


class DDIM:
    """`alphas_cumprod` (1000,) float32; one instance serves any number of steps."""

    def __init__(self, config: SchedulerConfig | None = None) -> None:
        self.config = config or SchedulerConfig()
        betas = torch.linspace(
            self.config.beta_start, self.config.beta_end, self.config.num_train_timesteps, dtype=torch.float32
        )
        self.betas = rescale_to_zero_snr(betas) if self.config.rescale_betas_zero_snr else betas
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        self.final_alpha_cumprod = torch.tensor(1.0)
        self.init_noise_sigma = 1.0

    def timesteps(self, steps: int) -> Tensor:
        """Trailing: `round(arange(1000, 0, −1000/N)) − 1`, half to even, int64 (N,)."""
        total = self.config.num_train_timesteps
        if not 0 < steps <= total:
            raise ValueError(f"steps must be between 1 and {total}, got {steps}")
        return torch.from_numpy(np.round(np.arange(total, 0, -total / steps)).astype(np.int64) - 1)

    def previous(self, timestep: int, steps: int) -> int:
        """`t − 1000 // N`: not the next time step where 1000/N is no integer (quirk `last-step`)."""
        return timestep - self.config.num_train_timesteps // steps

    def alpha(self, timestep: int) -> Tensor:
        """ᾱ of a time step; 1 before the first."""
        return self.alphas_cumprod[timestep] if timestep >= 0 else self.final_alpha_cumprod

    def step(self, v: Tensor, timestep: int, steps: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x` at the previous time step, and the predicted x₀; both of the shape and dtype of `x`.

        `x0 = √ᾱ·x − √(1−ᾱ)·v`, `ε = √ᾱ·v + √(1−ᾱ)·x`, `x' = √ᾱ'·x0 + √(1−ᾱ')·ε`. The coefficients are 0-dim float32
        tensors, so half precision stays half precision.
        """
        bar, bar_prev = self.alpha(timestep), self.alpha(self.previous(timestep, steps))
        x0 = bar**0.5 * x - (1 - bar) ** 0.5 * v
        eps = bar**0.5 * v + (1 - bar) ** 0.5 * x
        return bar_prev**0.5 * x0 + (1 - bar_prev) ** 0.5 * eps, x0
