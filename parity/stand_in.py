"""A port against a reference that was recorded: the engine of `parity run` and `parity.check`, with recorded values and operations in the reference's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parity.api import Names, judge_unnamed, names_of
from parity.capture.roots import RootCalls
from parity.case import Case, Fault, Side, Variation
from parity.compare.floors import ISOLATION, Floors
from parity.compare.measure import own_errors
from parity.errors import CaseError
from parity.pipeline import Prepared, run_case
from parity.result import Result
from parity.run.given import Arguments, Given, as_model, side_of
from parity.run.program import side_of_calls
from parity.run.recorded import Recorded, load_recorded
from parity.run.side import Runs

_DIFFERENT = {"dtype": "two environments: their dtypes are their own"}


def against(
    reference: str | Path | Recorded,
    port: Given,
    inputs: Any,
    *,
    names: Names = None,
    allow_unaligned: float | None = None,
    isolate: bool = True,
    label: str = "against",
    zoom: str = "",
) -> Result:
    """Do what `parity.check` does, with a trace in the place of the reference. See docs/two_environments.md for what the trace must keep.

    >>> parity.against("official.trace", mine, (x, t)).verdict
    'match'

    Raises TraceError for a trace that cannot be read, SideError when the port fails.
    """
    port_side = side_of(as_model("port", port), Arguments(inputs), None)
    return _judged(reference, port_side, names, allow_unaligned, isolate, label, zoom)


def calls_against(
    reference: str | Path | Recorded, found: RootCalls, *, names: Names = None, label: str = "against", zoom: str = ""
) -> Result:
    """Do the same for the root modules of a program: its calls are made again, on the recorded values."""
    return _judged(reference, side_of_calls(found), names, None, True, label, zoom)


def _judged(
    reference: str | Path | Recorded,
    port: Side,
    names: Names,
    allow_unaligned: float | None,
    isolate: bool,
    label: str,
    zoom: str,
) -> Result:
    recorded = reference if isinstance(reference, Recorded) else load_recorded(reference)
    setting = recorded.setting()
    case = Case(
        system="against",
        name=label,
        text="a recorded reference",
        reference=recorded.side(),
        port=port,
        inputs=lambda given: None,
        names=names_of(names),
        allow_dtypes={".*": _DIFFERENT["dtype"]},
        noise=recorded.trace.manifest.floors.get("noise", {}),
    )
    options = {"isolate": isolate, "free": False, "zoom": zoom, "prepared": prepared_from(recorded)}
    result = judge_unnamed(case, setting, allow_unaligned, None, label, **options)
    return replace(result, command="parity against REFERENCE.trace PORT --zoom first")


def case_against(
    reference: str | Path | Recorded,
    case: Case,
    *,
    fault: Fault | None = None,
    variation: Variation | None = None,
    **options: Any,
) -> tuple[Result, Runs]:
    """Run the port of a case against its recorded reference. options: those of `run_case`. Raises CaseError for the trace of another case."""
    recorded = reference if isinstance(reference, Recorded) else load_recorded(reference)
    manifest = recorded.trace.manifest
    if (manifest.system, manifest.case) != (case.system, case.name):
        raise CaseError(f"the trace is of {manifest.system}/{manifest.case}, not of {case.label}")
    setting = recorded.setting()
    there = replace(case, reference=recorded.side())
    return run_case(there, setting, fault=fault, variation=variation, prepared=prepared_from(recorded), **options)


def prepared_from(recorded: Recorded) -> Prepared:
    """Return the reference's runs and the limits that follow, as the trace keeps them."""
    trace, precise, floors = recorded.trace, recorded.precise, recorded.trace.manifest.floors
    if "own" not in floors:
        return Prepared(trace, None, Floors(), None, recorded.weights, (_lacks("floors", "--floors"),))
    local: Mapping[str, float] = own_errors(trace, precise) if precise is not None else {}
    own = Floors(local=local, pooled=floors["own"], levels=floors.get("levels", {}), measured=True)
    limits = Floors(pooled=floors.get("isolation", {}), measured=True, least=ISOLATION) if precise is not None else None
    lacking = [] if precise is not None else [_lacks("values in float64: no isolation", "--precise REGEX")]
    if not recorded.logs:
        lacking.append(_lacks("operations: no operation and line of the port", "--operations REGEX"))
    return Prepared(trace, precise, own, limits, recorded.weights, tuple(lacking), recorded.held)


def _lacks(what: str, option: str) -> str:
    return f"the reference's trace keeps no {what} (parity capture {option})"
