"""Faults of schedules and solvers (spec D40-D45).

A schedule fault replaces `ported.wan.solver.official_table`, which the schedulers look up in `set_timesteps`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ported.wan import solver
from ported.wan.faults.record import Port, PortFault, patched, recast
from ported.wan.solver import OfficialUniPC, Table

TableRule = Callable[[str, int, float], Table]


@contextmanager
def table_by(rule: Callable[[TableRule, str, int, float], Table]) -> Iterator[None]:
    """Let `rule(right, kind, steps, shift)` make the table."""
    right = solver.official_table
    with patched(solver, "official_table", lambda kind, steps, shift: rule(right, kind, steps, shift)):
        yield


def library_table(_: TableRule, kind: str, steps: int, shift: float) -> Table:
    """The library's own table."""
    scheduler = solver.build_scheduler(kind, shift, native=True)
    scheduler.set_timesteps(steps)
    return Table(scheduler.sigmas, scheduler.timesteps)


@contextmanager
def unipc_end_points(port: Port) -> Iterator[None]:
    """UniPC sigmas rebuilt as linspace(1, 1/1000): the library's table since January 2026."""
    with table_by(library_table):
        yield


@contextmanager
def end_point_shifted_twice(port: Port) -> Iterator[None]:
    """The shift is given to the constructor too, so the upper end point is shifted before the list is."""

    def table(right: TableRule, kind: str, steps: int, shift: float) -> Table:
        top = float(np.float32(solver.shifted(np.array(solver.SIGMA_MAX), shift)))
        sigmas = solver.shifted(np.linspace(top, 0.0, steps + 1)[:-1], shift)
        times = torch.from_numpy(sigmas * solver.TRAIN_STEPS).to(torch.int64)
        return Table(torch.from_numpy(np.append(sigmas, 0.0)).float(), times)

    with table_by(table):
        yield


@contextmanager
def never_shifted(port: Port) -> Iterator[None]:
    """No call site applies the shift."""
    with table_by(lambda right, kind, steps, shift: right(kind, steps, 1.0)):
        yield


@contextmanager
def euler_shifted_twice(port: Port) -> Iterator[None]:
    """Euler stores end points that are shifted, and shifts the list again: the library's own table."""
    with table_by(library_table):
        yield


@contextmanager
def shift_of_other_model(port: Port) -> Iterator[None]:
    """The checkpoint was converted with shift 3."""
    with table_by(lambda right, kind, steps, shift: right(kind, steps, 3.0)):
        yield


@contextmanager
def timesteps_rounded(port: Port) -> Iterator[None]:
    """Integer timesteps are rounded where the solver truncates."""

    def table(right: TableRule, kind: str, steps: int, shift: float) -> Table:
        exact = right(kind, steps, shift)
        return Table(exact.sigmas, (exact.sigmas[:-1].double() * solver.TRAIN_STEPS).round().to(torch.int64))

    with table_by(table):
        yield


@contextmanager
def last_sigma_not_zero(port: Port) -> Iterator[None]:
    """The schedule ends at the last training sigma, 0.001, instead of 0."""

    def table(right: TableRule, kind: str, steps: int, shift: float) -> Table:
        exact = right(kind, steps, shift)
        return Table(torch.cat([exact.sigmas[:-1], torch.tensor([1.0 / solver.TRAIN_STEPS])]), exact.timesteps)

    with table_by(table):
        yield


class _SearchesStart(OfficialUniPC):
    def set_begin_index(self, begin_index: int = 0) -> None:
        """Keep no begin index, so that the first timestep is searched in the table, where it may stand twice."""


@contextmanager
def start_searched(port: Port) -> Iterator[None]:
    """The start index is found by equality of integer timesteps; of two equal ones the second is taken."""
    with recast([port.scheduler], _SearchesStart):
        yield


class _EulerSteps(OfficialUniPC):
    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        self._step_index += 1
        return (sample + (following - sigma) * model_output,)


@contextmanager
def euler_for_unipc(port: Port) -> Iterator[None]:
    """Euler steps on the UniPC schedule."""
    with recast([port.scheduler], _EulerSteps):
        yield


@contextmanager
def corrector_missing(port: Port) -> Iterator[None]:
    """UniPC without its corrector."""
    with patched(port.scheduler, "disable_corrector", list(range(solver.TRAIN_STEPS))):
        yield


class _BfloatLatents(OfficialUniPC):
    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        (following,) = super().step(model_output, timestep, sample, return_dict=False)
        return (following.bfloat16().to(following.dtype),)


@contextmanager
def latents_bf16(port: Port) -> Iterator[None]:
    """Latents are carried in the model's bfloat16 from step to step."""
    with recast([port.scheduler], _BfloatLatents):
        yield


class _KeepsHistory(OfficialUniPC):
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        outputs, order, last = self.model_outputs, self.lower_order_nums, self.last_sample
        super().set_timesteps(*args, **kwargs)
        self.model_outputs, self.lower_order_nums, self.last_sample = outputs, order, last


@contextmanager
def history_survives(port: Port) -> Iterator[None]:
    """The solver's history is not reset between requests: the second one starts with the end of the first."""
    with recast([port.scheduler], _KeepsHistory):
        yield


_UNIPC = {"solver": "unipc"}
FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "unipc_end_points", "D40", "T5", "UniPC sigmas from linspace(1, 0.001)", unipc_end_points, "solver", _UNIPC
    ),
    PortFault(
        "end_point_shifted_twice",
        "D41",
        "T3",
        "upper end point shifted twice",
        end_point_shifted_twice,
        "solver",
        _UNIPC,
    ),
    PortFault("never_shifted", "D41", "T3", "schedule never shifted", never_shifted, "solver"),
    PortFault(
        "euler_shifted_twice",
        "D42",
        "T3",
        "Euler sigmas shifted twice",
        euler_shifted_twice,
        "solver",
        {"solver": "euler", "steps": 6, "shift": 5.0},
    ),
    PortFault(
        "shift_of_other_model", "D43", "W12", "shift 3 instead of 16", shift_of_other_model, "solver", {"shift": 16.0}
    ),
    PortFault(
        "start_searched",
        "D44",
        "T5",
        "start index searched among repeated timesteps",
        start_searched,
        "solver",
        {"solver": "unipc", "steps": 100, "shift": 16.0, "begin": 0},
        "error",
    ),
    PortFault("euler_for_unipc", "D45", "T4", "Euler steps in place of UniPC", euler_for_unipc, "solver", _UNIPC),
    PortFault("corrector_missing", "B", "T4", "UniPC without corrector", corrector_missing, "solver", _UNIPC),
    PortFault("timesteps_rounded", "B", "T5", "timesteps rounded, not truncated", timesteps_rounded, "solver", _UNIPC),
    PortFault("last_sigma_not_zero", "B", "T5", "schedule ends at 0.001 instead of 0", last_sigma_not_zero, "solver"),
    PortFault("latents_bf16", "B", "T9", "latents carried in bfloat16", latents_bf16, "solver", _UNIPC),
    PortFault(
        "history_survives",
        "B",
        "T7",
        "solver history not reset between requests",
        history_survives,
        "solver",
        {"solver": "unipc", "requests": 2},
    ),
)
