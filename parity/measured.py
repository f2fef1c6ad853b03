"""Traces of a side that can run again: with what judging needs when the side is no longer there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from parity.boundary.patterns import own_pattern
from parity.capture.parameters import describe_parameters
from parity.capture.probes import Probe
from parity.capture.roots import RootCalls
from parity.capture.step_log import StepLog
from parity.capture.step_store import write_log
from parity.case import Case, Setting
from parity.compare.foreign import carrying
from parity.compare.noise import noise_of
from parity.errors import CaseError, SideError
from parity.pipeline import Prepared, prepare
from parity.run.double import with_held
from parity.run.given import Arguments, Given, as_model, dtype_of, side_of
from parity.run.program import dtype_of_calls, side_of_calls
from parity.run.recorded import DEPLOYED, DOUBLE, PRECISE, chosen_by
from parity.run.side import SideRun, grafting, run_side
from parity.trace import MemorySource, Record, Trace
from parity.trace.store import load_trace
from parity.trace.writer import judging_folder, sketched, write_trace


@dataclass(frozen=True)
class Kept:
    """What a trace keeps on request. tensors: full values as deployed. precise, operations: regular expressions for the paths of the modules whose values
    in float64, and whose operations with their source lines, are kept; nothing where they are empty. noise: declared.
    """

    tensors: bool = True
    precise: str = ""
    operations: str = ""
    noise: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own_pattern(self.precise, "--precise"), own_pattern(self.operations, "--operations")


def capture_model(
    model: Given, inputs: Any, kept: Kept, *, probes: Sequence[Probe] | None = None, path: Path | None = None
) -> Trace:
    """Record a trace that carries floors and limits of isolation, measured by runs in float64 and with moved weights. See `parity.capture`."""
    model = as_model("model", model)
    side = side_of(model, Arguments(inputs), None if probes is None else lambda current: probes)
    case = Case("", "", "one model", side, side, inputs=lambda setting: None, noise=kept.noise)
    return capture_case(case, Setting(dtype=dtype_of(model)), kept, path)


def capture_calls(found: RootCalls, pattern: str, kept: Kept, path: Path, notes: Sequence[str]) -> Trace:
    """Do the same for the root modules of a program: their calls are made again."""
    side = side_of_calls(found, pattern)
    case = Case("", "", "a program", side, side, inputs=lambda setting: None, noise=kept.noise)
    return capture_case(case, Setting(dtype=dtype_of_calls(found)), kept, path, notes, len(found.calls) == 1)


def capture_named(
    name: str, kept: Kept, path: Path, dtype: str | None, seed: int, cases: Sequence[Path] | None
) -> Trace:
    """Record the reference of a case by its name, `system/case`. dtype, seed: as `parity run` takes them."""
    from parity.case.discovery import find_systems
    from parity.case.jobs import Wanted, choose_jobs

    jobs = choose_jobs(
        find_systems(paths=list(cases) if cases else None, names=[name]), Wanted([name], None, None, dtype, "cpu", seed)
    )
    if len(jobs) != 1:
        raise CaseError(f"case:{name} names {len(jobs)} cases: give one, as in case:{jobs[0].case.label}")
    return capture_case(jobs[0].case, jobs[0].setting, kept, path)


def capture_case(
    case: Case, setting: Setting, kept: Kept, path: Path | None = None, notes: Sequence[str] = (), returned: bool = True
) -> Trace:
    """Do the same for the reference of a case. Raises CaseError for what only a folder can keep, and SideError when the reference fails."""
    if path is None and (kept.precise or kept.operations):
        raise CaseError("precise= and operations= need path=: they are kept in files")
    made = prepare(case, setting)
    case = with_held(case, "reference", made.held)
    trace = carrying(made.reference, made.floors, made.limits, case)
    floors = {**trace.manifest.floors, "rounding": _rounding(case, setting, made.reference)}
    trace = trace.with_manifest(
        side=trace.manifest.side if trace.manifest.case else "",
        floors=floors,
        parameters=_described(case, setting),
        notes=(*notes, *trace.manifest.notes, *made.notes),
        returned=trace.manifest.returned and returned,
    )
    trace = trace if kept.tensors else sketched(trace)
    if path is None:
        return trace
    write_trace(trace, path)
    if kept.precise or kept.operations:
        with judging_folder(path) as folder:
            _keep(folder, case, setting, made, kept)
    return load_trace(path)


def _keep(folder: Path, case: Case, setting: Setting, made: Prepared, kept: Kept) -> None:
    if kept.precise and made.precise is not None:
        write_trace(_chosen(made.precise, kept.precise), folder / PRECISE)
    for name, values in ((DEPLOYED, made.reference), (DOUBLE, made.precise)) if kept.operations else ():
        if values is None:
            continue
        chosen = chosen_by(kept.operations)
        log = StepLog(chosen)
        double = name == DOUBLE
        graft = grafting(values)
        options: dict[str, Any] = {
            "upcast": double,
            "override": graft,
            "watch": log.watch,
            "states": True,
            "keep": False,
        }
        run = run_side(case, "reference", setting, around=log, weights=not double, **options)
        states = {path: state for path, state in run.states.items() if chosen(path)}
        weights = {n: w for n, w in run.weights.items() if chosen(n.rpartition(".")[0])}
        held = {site: (str(one.dtype).removeprefix("torch."), one.reason) for site, one in made.held.items()}
        write_log(folder / name, log, states, weights, _modules(case, run), held)


def _chosen(trace: Trace, pattern: str) -> Trace:
    """Return the trace with the values of chosen modules: their inputs and outputs, and what was seen inside them."""
    chosen = chosen_by(pattern)
    values = {r.key: t for r in trace if _is_of(r, chosen) and (t := trace.tensor(r.key)) is not None}
    records = [r if r.key in values else replace(r, stats=None, digest="", sketch=None) for r in trace]
    return Trace(records, trace.manifest, MemorySource(values))


def _is_of(record: Record, chosen: Any) -> bool:
    return bool(chosen(record.site.partition(".in.")[0]) or (record.role != "in" and chosen(record.module)))


def _modules(case: Case, run: SideRun) -> dict[str, bool]:
    """Return the paths of the modules, and whether they are lists or dicts of modules."""
    roots = case.reference.modules(run.model).items()
    kinds = (nn.ModuleList, nn.ModuleDict)
    return {prefix + path: isinstance(part, kinds) for prefix, root in roots for path, part in root.named_modules()}


def _rounding(case: Case, setting: Setting, reference: Trace) -> dict[str, float]:
    """Return what roundings of the recorded values do at each site; nothing where the side cannot run so."""
    try:
        return {site: error for site, error in noise_of(case, setting, reference).items() if error < float("inf")}
    except SideError:
        return {}


def _described(case: Case, setting: Setting) -> dict[str, Any]:
    roots: Mapping[str, nn.Module] = case.reference.modules(case.reference.build(setting))
    return {name: one for prefix, root in roots.items() for name, one in describe_parameters(root, prefix).items()}
