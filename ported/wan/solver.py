"""Schedulers of the port: diffusers' own, on the official tables or on their native ones (spec A13, B4).

The update rules are the library's, untouched (`scheduler.step`). What differs between the official code and the
library is the table: the library's UniPC spans linspace(1, 0.001) and lowers the first sigma by 1e-6, its Euler
shifts the end points twice. `native=False` (default) keeps the library's stepping and puts the official table in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

SOLVERS = ("unipc", "dpmpp", "euler")
TRAIN_STEPS = 1000
# 1 - 1/1000 as the official training table stores it: in float32
SIGMA_MAX = float(np.float32(1.0 - 1.0 / TRAIN_STEPS))


@dataclass(frozen=True)
class Table:
    """`sigmas` float32 (N+1, the last is 0); `timesteps` (N): int64, but float32 for Euler."""

    sigmas: Tensor
    timesteps: Tensor


def official_table(kind: str, steps: int, shift: float) -> Table:
    """Sigmas s·σ/(1+(s-1)·σ) of the official solvers and their timesteps (spec A13), computed in float64.

    UniPC starts at 0.999, DPM-Solver++ and Euler at 1. Integer timesteps are truncated, not rounded.
    """
    top = SIGMA_MAX if kind == "unipc" else 1.0
    sigmas = shifted(np.linspace(top, 0.0, steps + 1)[:-1], shift)
    times = torch.from_numpy(sigmas * TRAIN_STEPS)
    with_end = torch.from_numpy(np.append(sigmas, 0.0)).float()
    return Table(with_end, with_end[:-1] * TRAIN_STEPS if kind == "euler" else times.to(torch.int64))


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Apply the flow shift once."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class OfficialTable:
    """Scheduler mixin: after the library has reset its state, replace its table by `official_table`.

    `flow_shift` (UniPC, DPM++) or `shift` (Euler) of the library config is the shift; nothing else is overridden.
    """

    kind: str

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **others: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device, **others)  # type: ignore[misc]
        shift = self.config.shift if self.kind == "euler" else self.config.flow_shift  # type: ignore[attr-defined]
        table = official_table(self.kind, num_inference_steps, shift)
        self.sigmas = table.sigmas
        self.timesteps = table.timesteps.to(device)


class OfficialUniPC(OfficialTable, UniPCMultistepScheduler):
    """diffusers' UniPC on the official table."""

    kind = "unipc"


class OfficialDPM(OfficialTable, DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (2M, midpoint) on the official table."""

    kind = "dpmpp"


class OfficialEuler(OfficialTable, FlowMatchEulerDiscreteScheduler):
    """diffusers' flow-matching Euler on the official sigma list (the official repository has no Euler)."""

    kind = "euler"


_CLASSES: dict[tuple[str, bool], Any] = {
    ("unipc", False): OfficialUniPC,
    ("unipc", True): UniPCMultistepScheduler,
    ("dpmpp", False): OfficialDPM,
    ("dpmpp", True): DPMSolverMultistepScheduler,
    ("euler", False): OfficialEuler,
    ("euler", True): FlowMatchEulerDiscreteScheduler,
}


def build_scheduler(kind: str = "unipc", shift: float = 5.0, native: bool = False, order: int = 2) -> Any:
    """Build the scheduler as converted Wan checkpoints configure it; `native=True` keeps the library's table."""
    if kind not in SOLVERS:
        raise ValueError(f"unknown solver {kind!r}; choose one of {', '.join(SOLVERS)}")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift, "solver_order": order}
    arguments: dict[str, Any] = {"shift": shift} if kind == "euler" else flow
    return _CLASSES[kind, native](num_train_timesteps=TRAIN_STEPS, **arguments)


def solve(
    scheduler: Any, x: Tensor, velocity: Callable[[int, Tensor, Tensor], Tensor], steps: int, begin: int | None = None
) -> list[Tensor]:
    """Run `steps` solver steps from noise `x` (b c t h w); `velocity(i, x, t)` gives the model output of step i.

    Returns [x_T, x after step 0, ...]. `begin` is handed to `set_begin_index`: the t2v pipeline passes 0, the i2v one
    passes nothing and searches the first timestep, which fails when it occurs twice (spec A13, trap).
    """
    scheduler.set_timesteps(steps, device=x.device)
    if begin is not None:
        scheduler.set_begin_index(begin)
    samples = [x]
    for i, t in enumerate(scheduler.timesteps):
        samples.append(scheduler.step(velocity(i, samples[-1], t), t, samples[-1], return_dict=False)[0])
    return samples
