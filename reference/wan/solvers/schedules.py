"""Sigma and time step tables of the three solvers (spec A13). Computed in float64, kept in float32."""

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """One sigma more than time steps: the last sigma is 0."""

    sigmas: Tensor  # float32 (n+1,)
    timesteps: Tensor  # (n,), int64 (UniPC, DPM-Solver++) or float32 (Euler)


def training_sigmas() -> Tensor:
    """`1 − linspace(1, 1/1000, 1000)` read backwards, unshifted: float32 0.999, 0.998, …, 0."""
    alphas = torch.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, TRAIN_TIMESTEPS, dtype=torch.float64).flip(0)
    return (1.0 - alphas).float()


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """`sσ / (1 + (s−1)σ)`."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def open_linspace(start: float, stop: float, steps: int) -> Tensor:
    """`linspace(start, stop, steps+1)` without its last value, float64."""
    return start + torch.arange(steps, dtype=torch.float64) * ((stop - start) / steps)


def append_zero(sigmas: Tensor) -> Tensor:
    """Close a float64 list with sigma 0 and round it to float32."""
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def unipc_schedule(steps: int, shift: float) -> Schedule:
    """`linspace(0.999, 0)` shifted; time steps truncated to int64. The upper end is float32(0.999), read as float64."""
    table = training_sigmas()
    sigmas = shift_sigmas(open_linspace(table[0].item(), table[-1].item(), steps), shift)
    return Schedule(append_zero(sigmas), (sigmas * TRAIN_TIMESTEPS).to(torch.int64))


def dpmpp_schedule(steps: int, shift: float) -> Schedule:
    """`linspace(1, 0)` shifted; time steps truncated to int64, the first one is 1000."""
    sigmas = shift_sigmas(open_linspace(1.0, 0.0, steps), shift)
    return Schedule(append_zero(sigmas), (sigmas * TRAIN_TIMESTEPS).to(torch.int64))


def euler_schedule(steps: int, shift: float) -> Schedule:
    """The sigmas of DPM-Solver++ with float time steps 1000σ."""
    sigmas = append_zero(shift_sigmas(open_linspace(1.0, 0.0, steps), shift))
    return Schedule(sigmas, sigmas[:-1] * TRAIN_TIMESTEPS)


def start_index(timesteps: Tensor, timestep: Tensor) -> int:
    """Find the position of the first time step by equality; of several equal ones the SECOND is taken, as upstream.

    Errors: ValueError when the time step is not in the schedule.
    """
    found = (timesteps == timestep.to(timesteps.device)).nonzero().flatten().tolist()
    if not found:
        raise ValueError(f"time step {timestep.item()} is not in the schedule {timesteps.tolist()}")
    return found[1] if len(found) > 1 else found[0]


def log_snr(sigma: Tensor) -> Tensor:
    """`λ(σ) = ln(1−σ) − ln σ`; +inf at 0, −inf at 1."""
    return torch.log(1 - sigma) - torch.log(sigma)
