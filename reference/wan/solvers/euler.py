"""Plain Euler. Not in the official repository; ports use it (spec A13)."""

from torch import Tensor

from .schedules import Schedule


class Euler:
    """`x ← x + (σ_{i+1} − σ_i)·v`. One object runs one trajectory."""

    def __init__(self, schedule: Schedule) -> None:
        self.sigmas, self.timesteps = schedule.sigmas, schedule.timesteps
        self.index = 0

    def step(self, velocity: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next sigma; steps come in order."""
        sigma, following = self.sigmas[self.index], self.sigmas[self.index + 1]
        self.index += 1
        return sample + (following - sigma) * velocity
