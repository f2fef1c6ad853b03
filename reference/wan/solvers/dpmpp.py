"""DPM-Solver++ (2M, midpoint) for flow matching (spec A13)."""

import torch
from torch import Tensor

from .schedules import Schedule, log_snr, start_index


class DPMSolverPP:
    """Second-order multistep solver on data predictions. One object runs one trajectory.

    The first and the last step are of first order. The sample is cast to float32 inside, the result to the dtype of the
    velocity.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.sigmas, self.timesteps = schedule.sigmas, schedule.timesteps
        self.index: int | None = None
        self.previous: Tensor | None = None  # data prediction of the step before

    def data_prediction(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """`m = x − σ_i·v`."""
        return sample - self.sigmas[self.index] * velocity

    def first_order(self, m: Tensor, sample: Tensor) -> Tensor:
        """`(σ_{i+1}/σ_i)·x − α_{i+1}(e^{−h} − 1)·m`."""
        sigma, following = self.sigmas[self.index], self.sigmas[self.index + 1]
        h = log_snr(following) - log_snr(sigma)
        return (following / sigma) * sample - ((1 - following) * (torch.exp(-h) - 1.0)) * m

    def second_order(self, m: Tensor, previous: Tensor, sample: Tensor) -> Tensor:
        """First order plus `½ D`, `D = (m_i − m_{i−1})/r`, `r = h₀/h`; σ₀ = 1 gives r = ∞ and D = 0."""
        before, sigma, following = self.sigmas[self.index - 1 : self.index + 2]
        h, h0 = log_snr(following) - log_snr(sigma), log_snr(sigma) - log_snr(before)
        slope = (1.0 / (h0 / h)) * (m - previous)
        factor = (1 - following) * (torch.exp(-h) - 1.0)
        return (following / sigma) * sample - factor * m - 0.5 * factor * slope

    def step(self, velocity: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next sigma.

        Errors: ValueError when the trajectory is already at its end.
        """
        if self.index is None:
            self.index = start_index(self.timesteps, timestep)
        if self.index >= len(self.timesteps):
            raise ValueError(f"step {self.index} is beyond the {len(self.timesteps)} time steps of this schedule")
        m = self.data_prediction(velocity, sample)
        last = self.index == len(self.timesteps) - 1
        if self.previous is None or last:
            out = self.first_order(m, sample.float())
        else:
            out = self.second_order(m, self.previous, sample.float())
        self.previous = m
        self.index += 1
        return out.to(velocity.dtype)
