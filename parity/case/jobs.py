"""From the arguments of `parity run` to the cases that are run, with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from parity.boundary.device import check_device
from parity.case.case import Case, Fault, Setting, System, Variation
from parity.case.discovery import choose_cases, get_system
from parity.case.index import NOTHING, did_you_mean
from parity.errors import CaseError

DTYPES = {
    "fp32": "float32",
    "float32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp64": "float64",
    "float64": "float64",
}


@dataclass(frozen=True)
class Job:
    """One case to run, as asked for."""

    case: Case
    setting: Setting
    fault: Fault | None = None
    variation: Variation | None = None


@dataclass(frozen=True)
class Wanted:
    """What was asked for. names: `system` or `system/case`, everything when empty; dtype: a key of DTYPES; weights: a checkpoint."""

    names: list[str] = field(default_factory=list)
    fault: str | None = None
    variation: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    seed: int = 0
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise CaseError(f"unknown dtype '{self.dtype}'; there are: {', '.join(DTYPES)}")
        one = len(self.names) == 1
        if self.weights is not None and not (one and "/" not in self.names[0]):
            raise CaseError("--weights needs exactly one system, as in: parity run wan --weights PATH")
        if (self.fault or self.variation) and not (one and None in (self.fault, self.variation)):
            raise CaseError("--fault and --variation need exactly one system, as in: parity run waypoint --fault NAME")
        check_device(self.device)

    def setting(self, case: Case, preferred: torch.dtype | None = None) -> Setting:
        """Return the setting of a case: the dtype that was asked for, else the preferred one, else the case's first."""
        asked = getattr(torch, DTYPES[self.dtype]) if self.dtype else None
        return Setting(asked or preferred or case.dtypes[0], self.device, self.seed)


def choose_jobs(systems: Mapping[str, System], wanted: Wanted) -> list[Job]:
    """Return the jobs that were asked for. Raises CaseError for what there is not, and when there is nothing to run."""
    there = dict(systems)
    if wanted.weights is not None:
        system = get_system(there, wanted.names[0])
        if system.from_weights is None:
            raise CaseError(f"system {system.name} cannot run from a checkpoint")
        return [Job(case, wanted.setting(case)) for case in system.from_weights(wanted.weights)]
    if wanted.fault or wanted.variation:
        return [_switched(there, wanted)]
    jobs = [Job(case, wanted.setting(case)) for case in choose_cases(there, wanted.names)]
    if not jobs:
        raise CaseError(NOTHING)
    return jobs


def _switched(systems: dict[str, System], wanted: Wanted) -> Job:
    """Return the job of one fault or variation."""
    system_name, _, case_name = wanted.names[0].partition("/")
    system = get_system(systems, system_name)
    fault = next((f for f in system.faults if f.name == wanted.fault), None)
    variation = next((v for v in system.variations if v.name == wanted.variation), None)
    chosen = fault or variation
    if chosen is None:
        kind, pool = ("fault", system.faults) if wanted.fault else ("variation", system.variations)
        name, names = wanted.fault or wanted.variation or "", [item.name for item in pool]
        raise CaseError(f"system {system.name} has no {kind} '{name}'{did_you_mean(name, names)} (see parity list)")
    case = system.case(case_name or chosen.case)
    return Job(case, wanted.setting(case, chosen.dtype), fault, variation)
