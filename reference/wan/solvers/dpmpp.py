"""DPM-Solver++ (multistep, midpoint) of order 2 or 3 for flow matching (spec A13; Lu et al. 2022, algorithm 2, and its third order)."""

import torch
from torch import Tensor

from .schedules import Schedule, log_snr, start_index


class DPMSolverPP:
    """Multistep solver on data predictions. One object runs one trajectory.

    The first and the last step are of first order; of the third order, the second step and (below 15 steps) the last but one are of the
    second. The sample is cast to float32 inside, the result to the dtype of the velocity.
    """

    def __init__(self, schedule: Schedule, order: int = 2) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"DPM-Solver++ has the orders 1, 2 and 3, not {order}")
        self.sigmas, self.timesteps, self.order = schedule.sigmas, schedule.timesteps, order
        self.index: int | None = None
        self.previous: tuple[Tensor, ...] = ()  # data predictions of the steps before, the latest first

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

    def third_order(self, m: Tensor, previous: Tensor, earlier: Tensor, sample: Tensor) -> Tensor:
        """The update on three predictions: first and second differences over unequal steps in log-SNR.

        `(σ_{i+1}/σ_i)·x − α_{i+1}(e^{−h} − 1)·m + α_{i+1}((e^{−h} − 1)/h + 1)·D₁ − α_{i+1}((e^{−h} − 1 + h)/h² − ½)·D₂`; σ₀ = 1 gives r₁ = ∞
        and D₂ = 0.
        """
        lambdas = log_snr(self.sigmas[self.index - 2 : self.index + 2])
        sigma, following = self.sigmas[self.index], self.sigmas[self.index + 1]
        h1, h0, h = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1], lambdas[3] - lambdas[2]
        r0, r1 = h0 / h, h1 / h
        recent, older = (1.0 / r0) * (m - previous), (1.0 / r1) * (previous - earlier)
        first = recent + (r0 / (r0 + r1)) * (recent - older)
        second = (1.0 / (r0 + r1)) * (recent - older)
        alpha, decay = 1 - following, torch.exp(-h) - 1.0
        return (
            (following / sigma) * sample
            - (alpha * decay) * m
            + (alpha * (decay / h + 1.0)) * first
            - (alpha * ((decay + h) / h**2 - 0.5)) * second
        )

    def order_now(self) -> int:
        """Return the order of this step: as many predictions as there are, fewer towards the end."""
        left = len(self.timesteps) - self.index
        order = min(self.order, len(self.previous) + 1)
        if left == 1:
            return 1
        return min(order, 2) if left == 2 and len(self.timesteps) < 15 else order

    def step(self, velocity: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next sigma.

        Errors: ValueError when the trajectory is already at its end.
        """
        if self.index is None:
            self.index = start_index(self.timesteps, timestep)
        if self.index >= len(self.timesteps):
            raise ValueError(f"step {self.index} is beyond the {len(self.timesteps)} time steps of this schedule")
        m = self.data_prediction(velocity, sample)
        update = (self.first_order, self.second_order, self.third_order)[self.order_now() - 1]
        out = update(m, *self.previous[: self.order_now() - 1], sample.float())
        self.previous = (m, *self.previous)[:2]
        self.index += 1
        return out.to(velocity.dtype)
