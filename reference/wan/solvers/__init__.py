"""Flow-matching solvers (spec A13).

Convention: `x_σ = (1−σ)·x₀ + σ·ε`, velocity `v ≈ ε − x₀`, data prediction `m = x − σ·v`, `λ(σ) = ln(1−σ) − ln σ`.
Every solver has `sigmas`, `timesteps` and `step(velocity, timestep, sample) -> sample`.
"""

from typing import Literal, Protocol

from torch import Tensor

from .dpmpp import DPMSolverPP
from .euler import Euler
from .schedules import Schedule, dpmpp_schedule, euler_schedule, training_sigmas, unipc_schedule
from .unipc import UniPC

SolverName = Literal["unipc", "dpm++", "euler"]


class Solver(Protocol):
    """What the sampling loop needs."""

    sigmas: Tensor
    timesteps: Tensor

    def step(self, velocity: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next sigma."""
        ...


def make_solver(name: SolverName, steps: int, shift: float) -> Solver:
    """Build a solver for one trajectory.

    Errors: ValueError for an unknown name (`dpm++` is the official spelling).
    """
    if name == "unipc":
        return UniPC(unipc_schedule(steps, shift))
    if name == "dpm++":
        return DPMSolverPP(dpmpp_schedule(steps, shift))
    if name == "euler":
        return Euler(euler_schedule(steps, shift))
    raise ValueError(f"solver {name!r} is not one of unipc, dpm++, euler")


__all__ = [
    "DPMSolverPP",
    "Euler",
    "Schedule",
    "Solver",
    "SolverName",
    "UniPC",
    "dpmpp_schedule",
    "euler_schedule",
    "make_solver",
    "training_sigmas",
    "unipc_schedule",
]
