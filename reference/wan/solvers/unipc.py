"""UniPC for flow matching, the default solver: bh2, data prediction, corrector at every step (spec A13).

All in the dtype of the sample, with float32 scalars.
"""

import torch
from torch import Tensor

from .schedules import Schedule, log_snr, start_index


def coefficients(ratios: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix R `(p, p)` and right-hand side b `(p,)` of `R ρ = b` for ratios `(p,)`.

    `R_{k,·} = r^{k−1}`, `b_k = k!·ψ_k / g`, `g = expm1(−h)`, `ψ₁ = g/(−h) − 1`, `ψ_{k+1} = ψ_k/(−h) − 1/(k+1)!`.
    """
    g = torch.expm1(-h)
    psi, factorial = g / -h - 1, 1
    rows, rhs = [], []
    for k in range(1, len(ratios) + 1):
        rows.append(torch.pow(ratios, k - 1))
        rhs.append(psi * factorial / g)
        factorial *= k + 1
        psi = psi / -h - 1 / factorial
    return torch.stack(rows), torch.stack(rhs)


class UniPC:
    """Predictor-corrector of order ≤ 2. One object runs one trajectory."""

    def __init__(self, schedule: Schedule, order: int = 2) -> None:
        self.sigmas, self.timesteps = schedule.sigmas, schedule.timesteps
        self.max_order = order
        self.index: int | None = None
        self.steps_done = 0
        self.order = 0  # of the previous predictor
        self.predictions: list[Tensor] = []  # data predictions of earlier steps, newest last
        self.last_sample: Tensor | None = None  # corrected sample of the previous step

    def data_prediction(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """`m = x − σ_i·v`, from the sample as received, before correction."""
        return sample - self.sigmas[self.index] * velocity

    def differences(self, index: int, h: Tensor, order: int) -> tuple[list[Tensor], list[Tensor]]:
        """Ratios and divided differences against `predictions[-1]`, which belongs to sigma `index`."""
        lambdas = log_snr(self.sigmas)
        earlier = [lambdas[index - j] for j in range(1, order)]
        ratios = [(value - lambdas[index]) / h for value in earlier]
        newest = self.predictions[-1]
        return ratios, [(self.predictions[-1 - j] - newest) / r for j, r in enumerate(ratios, start=1)]

    def correct(self, m: Tensor, order: int) -> Tensor:
        """UniC: replace the sample at σ_i, knowing the new data prediction `m`; order of the previous predictor."""
        before, sigma = self.sigmas[self.index - 1], self.sigmas[self.index]
        h = log_snr(sigma) - log_snr(before)
        g = torch.expm1(-h)
        ratios, slopes = self.differences(self.index - 1, h, order)
        newest = self.predictions[-1]
        if order == 1:
            rho = torch.tensor([0.5])
        else:
            matrix, rhs = coefficients(torch.stack([*ratios, torch.ones_like(h)]), h)
            rho = torch.linalg.solve(matrix, rhs)
        alpha = 1 - sigma
        out = (sigma / before) * self.last_sample - alpha * g * newest
        return out - alpha * g * (weighted_sum(rho[:-1], slopes, m) + rho[-1] * (m - newest))

    def predict(self, sample: Tensor, order: int) -> Tensor:
        """UniP: go from σ_i to σ_{i+1}; `predictions[-1]` is the data prediction at σ_i."""
        sigma, following = self.sigmas[self.index], self.sigmas[self.index + 1]
        h = log_snr(following) - log_snr(sigma)
        g = torch.expm1(-h)
        ratios, slopes = self.differences(self.index, h, order)
        if order == 2:
            rho = torch.tensor([0.5])
        elif order > 2:
            matrix, rhs = coefficients(torch.stack(ratios), h)
            rho = torch.linalg.solve(matrix, rhs)
        else:
            rho = torch.empty(0)
        alpha = 1 - following
        out = (following / sigma) * sample - alpha * g * self.predictions[-1]
        return out - alpha * g * weighted_sum(rho, slopes, sample)

    def step(self, velocity: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next sigma: predict data, correct, predict.

        Errors: ValueError at order 0. That is the official assertion: when the first integer time step occurs twice
        (large shift, many steps) the trajectory starts at index 1 and its last step has no sigma left.
        """
        if self.index is None:
            self.index = start_index(self.timesteps, timestep)
        m = self.data_prediction(velocity, sample)
        if self.steps_done > 0:
            sample = self.correct(m, self.order)
        self.predictions = [*self.predictions[1 - self.max_order :], m] if self.max_order > 1 else [m]
        self.order = min(self.max_order, len(self.timesteps) - self.index, self.steps_done + 1)
        if self.order < 1:
            raise ValueError(
                f"UniPC order 0 at step {self.index}: time steps repeat at the start, {self.timesteps[:3]}"
            )
        self.last_sample = sample
        out = self.predict(sample, self.order)
        self.steps_done += 1
        self.index += 1
        return out


def weighted_sum(weights: Tensor, slopes: list[Tensor], like: Tensor) -> Tensor:
    """`Σ ρ_j·D_j`; zeros shaped as `like` when there are none."""
    total = torch.zeros_like(like)
    for weight, slope in zip(weights, slopes, strict=True):
        total = total + weight * slope
    return total
