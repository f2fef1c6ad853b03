"""Traces of a side that can run again: with what judging needs when the side is no longer there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from parity.capture.parameters import describe_parameters
from parity.capture.probes import Probe
from parity.capture.roots import RootCalls
from parity.case import Case, Setting, Side
from parity.compare.foreign import carrying
from parity.compare.noise import noise_of
from parity.errors import SideError
from parity.pipeline import prepare
from parity.run.given import Arguments, Given, as_model, dtype_of, side_of
from parity.run.program import dtype_of_calls, side_of_calls
from parity.trace import Trace
from parity.trace.store import load_trace
from parity.trace.writer import sketched, write_trace


def capture_with_floors(
    model: Given,
    inputs: Any,
    *,
    probes: Sequence[Probe] | None = None,
    keep: bool = True,
    path: Path | None = None,
    noise: Mapping[str, float] | None = None,
) -> Trace:
    """Record a trace that carries floors and limits of isolation, measured by runs in float64 and with moved weights. See `parity.capture`."""
    model = as_model("model", model)
    side = side_of(model, Arguments(inputs), None if probes is None else lambda current: probes)
    case = Case("", "", "one model", side, side, inputs=lambda setting: None, noise=noise or {})
    return _written(measured_trace(case, Setting(dtype=dtype_of(model))), keep, path)


def capture_calls(
    found: RootCalls, pattern: str, keep: bool, path: Path, notes: Sequence[str], noise: Mapping[str, float]
) -> Trace:
    """Do the same for the root modules of a program: their calls are made again."""
    side = side_of_calls(found, pattern)
    case = Case("", "", "a program", side, side, inputs=lambda setting: None, noise=noise)
    trace = measured_trace(case, Setting(dtype=dtype_of_calls(found)))
    notes = (*notes, *trace.manifest.notes)
    trace = trace.with_manifest(notes=notes, returned=trace.manifest.returned and len(found.calls) == 1)
    return _written(trace, keep, path)


def measured_trace(case: Case, setting: Setting) -> Trace:
    """Run the reference of a case as deployed, in float64 and with moved weights; return its trace with what that measures."""
    made = prepare(case, setting)
    trace = carrying(made.reference, made.floors, made.limits, case)
    floors = {**trace.manifest.floors, "rounding": _rounding(case, setting, made.reference)}
    described = _described(case.reference, setting)
    notes = (*trace.manifest.notes, *made.notes)
    return trace.with_manifest(side="", floors=floors, parameters=described, notes=notes)


def _rounding(case: Case, setting: Setting, reference: Trace) -> dict[str, float]:
    """Return what roundings of the recorded values do at each site; nothing where the side cannot run so."""
    try:
        return {site: error for site, error in noise_of(case, setting, reference).items() if error < float("inf")}
    except SideError:
        return {}


def _described(side: Side, setting: Setting) -> dict[str, Any]:
    roots: Mapping[str, torch.nn.Module] = side.modules(side.build(setting))
    return {name: one for prefix, root in roots.items() for name, one in describe_parameters(root, prefix).items()}


def _written(trace: Trace, keep: bool, path: Path | None) -> Trace:
    trace = trace if keep else sketched(trace)
    if path is None:
        return trace
    write_trace(trace, Path(path))
    return load_trace(Path(path))
