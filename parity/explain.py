"""From the first divergence to a cause: drill down to the operation, gather what surrounds it, test the hypotheses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parity.absence import absent_causes
from parity.capture.recorder import Override
from parity.case import Case, Setting
from parity.diagnose import diagnose
from parity.diagnose.evidence import Evidence, Frame
from parity.diagnose.locality import describe
from parity.drilldown import CallLog, Departure, OpLog, Step, describe_op, find_departure, own_frame
from parity.errors import CaseError, SideError
from parity.execute import Inject, Runs, SideRun, grafting, reseating, run_side
from parity.judge import HIDDEN, error_of, hidden_places
from parity.listing import listing
from parity.module_state import ModuleState
from parity.result import Cause, Culprit, Divergence, Result, Row, format_key
from parity.trace import Record, Trace
from parity.weight_pairs import pair_parameters

Relabel = Mapping[str, Callable[[Tensor], Tensor]]
_MOST_CULPRITS = 6
_LONGEST_DETOUR = 64


@dataclass(frozen=True)
class Window:
    """What both sides did between the last agreeing record and the diverging one, and what their modules held."""

    ref_steps: tuple[Step, ...] = ()
    port_steps: tuple[Step, ...] = ()
    ref_states: Mapping[str, ModuleState] = field(default_factory=dict)
    port_states: Mapping[str, ModuleState] = field(default_factory=dict)
    port: Trace | None = None
    common: frozenset[str] = frozenset()  # functions that the reference runs too
    calls: tuple[Frame, ...] = ()  # around the port when it made the record, innermost first


def explain(
    case: Case, setting: Setting, runs: Runs, result: Result, inject: Inject | None, order: Relabel, zoom: str = ""
) -> Result:
    """Add culprit operations, causes and locality to a result with divergences; zoom: a site whose operations are listed."""
    assert result.first is not None
    targets = _targets(result)
    near = _zoomed(zoom, result, runs)
    wanted = dict.fromkeys(near, True) | {d.key: _in_double(d, runs) for _, d in targets}
    looks = _look(case, setting, runs, wanted, inject, order)
    culprits: list[Culprit] = []
    causes: list[Cause] = []
    divergences = {id(d): d for d in result.divergences}

    def alone(other: Divergence) -> tuple[Cause, ...]:
        evidence = gather(other, runs, Window(), other.module, result.rows)
        return diagnose(evidence) if evidence is not None else ()

    for i, (culprit, divergence) in enumerate(targets):
        window = looks.get(divergence.key, Window())
        if i == 0 and divergence.metric in ("missing", "extra"):
            window = _call_window(case, setting, runs, divergence, inject)
        culprits.append(_with_operation(culprit, divergence, window))
        evidence = gather(divergence, runs, window, culprit.module, result.rows)
        if evidence is None:
            if i == 0:
                causes = list(absent_causes(divergence, result, runs, alone))
            continue
        if i == 0:
            causes = list(diagnose(evidence))
        divergences[id(divergence)] = replace(divergence, locality=tuple(describe(evidence)))
    return replace(
        result,
        first=divergences.get(id(result.first), result.first),
        culprit=culprits[0] if culprits else result.culprit,
        culprits=(*culprits, *(c for c in result.culprits if c.module not in {known.module for known in culprits})),
        causes=tuple(causes),
        divergences=tuple(divergences[id(d)] for d in result.divergences),
        operations=_listed(near[0], looks.get(near[0], Window())) if near else (),
    )


def _zoomed(zoom: str, result: Result, runs: Runs) -> list[str]:
    """Return the record that `zoom` means: the first divergence, or the first record of a site, a diverging one before others."""
    if not zoom:
        return []
    if zoom == "first":
        return [result.first.key] if result.first is not None else []
    keys = [d.key for d in result.divergences if d.site == zoom] + [r.key for r in runs.reference if r.site == zoom]
    if not keys:
        raise CaseError(
            f"zoom: the reference has no site '{zoom}'; the first divergence is at {result.divergences[0].site}"
        )
    return keys[:1]


def _listed(key: str, window: Window) -> tuple[str, ...]:
    return listing(key, window.ref_steps, window.port_steps, _relative)


def _targets(result: Result) -> list[tuple[Culprit, Divergence]]:
    """Return what to look into: the first divergence, then the other independent culprits."""
    assert result.first is not None
    assert result.culprit is not None
    found = [(result.culprit, result.first)]
    by_key = {d.key: d for d in reversed(result.divergences) if d.tier == "isolation"}
    for culprit in result.culprits:
        divergence = by_key.get(format_key(culprit.site, culprit.coords))
        if divergence is not None and culprit.module != result.culprit.module:
            found.append((culprit, divergence))
    return found[:_MOST_CULPRITS]


def _look(
    case: Case, setting: Setting, runs: Runs, wanted: Mapping[str, bool], inject: Inject | None, order: Relabel
) -> dict[str, Window]:
    """Run both sides once more on the reference's values, with operations logged just before each of some records.

    wanted: in float64 (where isolation shows the divergence) or as deployed (where it does not: a rounding, an overflow).
    """
    if runs.precise is None:
        return {}
    found: dict[str, Window] = {}
    for upcast in (True, False):
        values, port = (runs.precise, runs.isolated or runs.port) if upcast else (runs.reference, runs.port)
        keys = [key for key, double in wanted.items() if double == upcast and key in values and key in port]
        keys = [key for key in keys if key not in runs.pieces]  # one part's operations are not those of the whole
        if not keys:
            continue
        graft = grafting(values), grafting(values, order, runs.pieces)
        near = _windows(case, setting, values, port, keys, inject, graft, upcast)
        first = next(iter(wanted))
        if first in near and not _made_in(near[first], values, first):  # it was made before the last agreeing record
            wide = _windows(case, setting, values, port, [first], inject, graft, upcast, wide=True)
            near |= {key: window for key, window in wide.items() if _made_in(window, values, key)}
        found |= near
    return found


def _made_in(window: Window, values: Trace, key: str) -> bool:
    """Tell whether both windows hold the operation that made their side's value of a record."""
    sides = (
        (window.ref_steps, values.tensor(key)),
        (window.port_steps, window.port.tensor(key) if window.port is not None else None),
    )
    return all(value is not None and _makes(steps, value) for steps, value in sides)


def _makes(steps: Sequence[Step], value: Tensor) -> bool:
    flat = value.flatten()
    exact = flat.itemsize == 1  # the narrow formats have no arithmetic
    return any(
        t.numel() == flat.numel()
        and t.dtype == flat.dtype
        and (
            torch.equal(t.flatten().view(torch.uint8), flat.view(torch.uint8))
            if exact
            else torch.allclose(t.flatten(), flat, rtol=1e-9, atol=0.0, equal_nan=True)
        )
        for step in steps
        for t in step.op.outputs
    )


def _windows(
    case: Case,
    setting: Setting,
    values: Trace,
    port_trace: Trace,
    keys: Sequence[str],
    inject: Inject | None,
    graft: tuple[Override, Override],
    upcast: bool,
    wide: bool = False,
) -> dict[str, Window]:
    """Log the operations before each of `keys`, both sides continuing from `values` after every record.

    wide: from the start of the module call that made the record, not from the last agreeing record before it.
    """
    found: dict[str, tuple[OpLog, SideRun]] = {}
    closing = frozenset(keys)
    for which, change, override in (("reference", None, graft[0]), ("port", inject, graft[1])):
        log = OpLog({key: _before(key, values, port_trace, which, wide) for key in keys})
        try:
            side = run_side(
                case,
                which,
                setting,
                inject=change,
                upcast=upcast,
                override=override,
                watch=log.watch,
                around=log,
                states=True,
                keep=lambda site, coords: format_key(site, coords) in closing,
            )
        except SideError:
            return {}
        found[which] = (log, side)
    (ref_log, ref), (port_log, port) = found["reference"], found["port"]
    return {
        key: Window(
            ref_log.windows.get(key, ()),
            port_log.windows.get(key, ()),
            ref.states,
            port.states,
            port.trace,
            frozenset(ref_log.functions),
            port_log.calls.get(key, ()),
        )
        for key in keys
    }


def _before(key: str, reference: Trace, port: Trace, which: str, wide: bool = False) -> str | None:
    """Return the last record before `key` that both sides have, in the order of the side that will be logged.

    wide: the last argument of the module whose code made the record.
    """
    own, other = (reference, port) if which == "reference" else (port, reference)
    record = own.get(key)
    earlier = own.records[: record.order] if record is not None else ()
    if wide and record is not None:
        entry = [r for r in earlier if r.role == "in" and r.site.startswith(f"{record.module}.in.")]
        return next((r.key for r in reversed(entry) if r.key in other and not _together(r, record)), None)
    return next(
        (
            r.key
            for r in reversed(earlier)
            if r.key in other and r.role != "state" and not (record is not None and _together(r, record))
        ),
        None,
    )


def _together(a: Record, b: Record) -> bool:
    """Tell whether two records are parts of one argument list or of one result, written down at the same moment: nothing happened between them."""
    return (
        a.role == b.role
        and a.role in ("in", "out", "function")
        and a.coords == b.coords
        and a.site.rpartition(".")[0] == b.site.rpartition(".")[0]
        and (a.role == "in" or (a.site.rpartition(".")[2] + b.site.rpartition(".")[2]).isdigit())
    )


def _with_operation(culprit: Culprit, divergence: Divergence, window: Window) -> Culprit:
    if not window.ref_steps and not window.port_steps:
        return _at_call(culprit, window)
    value = window.port.tensor(divergence.key) if window.port is not None else None
    departure: Departure = find_departure(window.ref_steps, window.port_steps, value)
    shown = departure.port or (window.port_steps[-1].op if window.port_steps and departure.reference else None)
    if shown is None and departure.reference is None:
        return _at_call(culprit, window)
    detail = departure.detail
    if departure.reference is not None and not detail:
        detail = f"reference: {describe_op(departure.reference)} at {_relative(departure.reference.source)}: {departure.reference.code}"
    elif departure.reference is not None:
        detail += f" at {_relative(departure.reference.source)}: {departure.reference.code}"
    # An operation inside a function that both sides run was given something else by the port's own code around it.
    steps = [shown, *(step.op for step in reversed(window.port_steps))] if shown else []
    stacks = [*(op.frames for op in steps), window.calls]
    frame = next((own for stack in stacks if (own := own_frame(stack, window.common)) is not None), None)
    if frame is None and shown is None:
        frame = next(iter(window.calls), None)
    if frame is not None and shown is not None and frame.source != shown.source:
        detail = "; ".join(filter(None, [f"computed at {_relative(shown.source)}: {shown.code}", detail]))
    source, code = (frame.source, frame.code) if frame else (shown.source, shown.code) if shown else (None, None)
    return replace(
        culprit,
        operation=describe_op(shown) if shown else None,
        source=_relative(source) if source else None,
        code=code,
        detail=detail,
    )


def _at_call(culprit: Culprit, window: Window) -> Culprit:
    """Name the line that was running when the port made the record: no operation led to it."""
    frame = own_frame(window.calls, window.common) or next(iter(window.calls), None)
    return replace(culprit, source=_relative(frame.source), code=frame.code) if frame else culprit


def _call_window(case: Case, setting: Setting, runs: Runs, divergence: Divergence, inject: Inject | None) -> Window:
    """Return what was running where the port makes a call of its own, or goes on without one that the reference makes there."""
    key = divergence.key if divergence.metric == "extra" else _goes_on(divergence, runs)
    if key is None:
        return Window()
    logs = {}
    for which, change in (("reference", None), ("port", inject)):
        logs[which] = log = CallLog(key if which == "port" else None)
        try:
            run_side(
                case,
                which,
                setting,
                inject=change,
                override=reseating(case, runs.reference),
                watch=log.watch,
                keep=False,
            )
        except SideError:
            return Window()
    return Window(common=frozenset(logs["reference"].functions), calls=logs["port"].calls)


def _goes_on(divergence: Divergence, runs: Runs) -> str | None:
    """Return the port's first record after the last one that it shares with the reference before a missing call."""
    record = runs.reference.get(divergence.key)
    earlier = runs.reference.records[: record.order] if record is not None else ()
    last = next((partner for r in reversed(earlier) if (partner := runs.port.get(r.key)) is not None), None)
    start = last.order + 1 if last is not None else 0
    return runs.port.records[start].key if start < len(runs.port) else None


def gather(divergence: Divergence, runs: Runs, window: Window, module: str, rows: Sequence[Row]) -> Evidence | None:
    """Collect what a hypothesis may look at. None when one side has no full tensor."""
    isolated = _in_double(divergence, runs)
    reference = runs.precise if isolated and runs.precise is not None else runs.reference
    port = runs.isolated if isolated and runs.isolated is not None else runs.port
    r, p = reference.tensor(divergence.key), port.tensor(divergence.key)
    if r is None or p is None:
        return None
    r, p = _without_hidden(r, p, divergence.kind)
    record = reference.get(divergence.key)
    inputs = _surroundings(record, reference) if record is not None else {}
    port_record = port.get(divergence.key)
    states = _both_states(window, record, port_record)
    return Evidence(
        reference=r,
        port=p,
        site=divergence.site,
        coords=divergence.coords,
        kind=divergence.kind,
        module=module,
        floor=divergence.floor if r.is_floating_point() else 0.0,
        precise=runs.precise.tensor(divergence.key) if runs.precise is not None else None,
        inputs={key: t for key in inputs if (t := reference.tensor(key)) is not None},
        port_inputs={key: t for key in inputs if (t := port.tensor(key)) is not None},
        ref_at=reference.at,
        port_at=port.at,
        sites=reference.sites(),
        parameters=pair_parameters(*states) if states is not None else {},
        settings=_settings(*states) if states is not None else {},
        weights={
            f"{path}.{name}".lstrip("."): value
            for path, state in window.ref_states.items()
            for name, value in state.parameters.items()
            if "." not in name
        },
        port_sites=port.sites(),
        ref_ops=tuple(replace(s.op, makers=s.makers) for s in window.ref_steps),
        port_ops=tuple(replace(s.op, makers=s.makers) for s in window.port_steps),
        earlier={
            rec.key: t
            for rec in reference
            if rec.site == divergence.site
            and rec.order < divergence.order
            and (t := reference.tensor(rec.key)) is not None
        },
        table=[(row.site, row.coords, row.error, row.floor) for row in rows if row.site == divergence.site],
        detour=_detour(record, port_record, reference, port) if record is not None and port_record is not None else (),
        overflow=next(
            (row.site for row in rows if row.order >= divergence.order and row.nonfinite[1] > row.nonfinite[0]), ""
        ),
    )


def _in_double(divergence: Divergence, runs: Runs) -> bool:
    """Tell whether the isolated run shows the divergence too: then its values are free of noise and of inherited error."""
    if divergence.tier == "isolation":
        return True
    if runs.precise is None or runs.isolated is None:
        return False
    r, p = runs.precise.tensor(divergence.key), runs.isolated.tensor(divergence.key)
    if r is None or p is None:
        return False
    if r.shape != p.shape:
        return True
    if not r.is_floating_point():
        return not torch.equal(r.double(), p.double())
    return not error_of(p, r) < 0.1 * divergence.error


def _without_hidden(r: Tensor, p: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Take out what a mask with a bias hides with, where both sides hide the same: those numbers drown the bias."""
    if kind == "mask" or r.shape != p.shape or not r.is_floating_point() or r.itemsize == 1:
        return r, p
    hidden = hidden_places(r)
    if hidden is None or bool((hidden != (p <= HIDDEN)).any()):
        return r, p
    return r.masked_fill(hidden, 0.0), p.masked_fill(hidden, 0.0)


def _detour(record: Record, port_record: Record, reference: Trace, port: Trace) -> list[tuple[str, str, Tensor]]:
    """Return what the port recorded on the way from the last record that is in its place, in order."""
    found: list[tuple[str, str, Tensor]] = []
    for other in reversed(port.records[: port_record.order]):
        partner = reference.get(other.key)
        if (partner is not None and partner.order < record.order) or len(found) >= _LONGEST_DETOUR:
            break
        value = port.tensor(other.key)
        if value is not None:
            found.append((other.site, other.kind, value))
    return found[::-1]


def _surroundings(record: Record, trace: Trace, most: int = 24) -> list[str]:
    """Return the keys of earlier records of the same module call: its inputs and what was seen inside it, in order."""
    found: list[str] = []
    for other in trace.records[: record.order][::-1]:
        if other.coords != record.coords and dict(other.coords) != {
            k: v for k, v in record.coords.items() if k != "call"
        }:
            if len(found) >= 2:
                break
            continue
        if _belongs(other, record.module):
            found.append(other.key)
        if len(found) >= most:
            break
    return found[::-1]


def _belongs(record: Record, module: str) -> bool:
    """Tell whether a record was made by a module, within it, by one of its callers, or is its input."""
    made_by = record.module
    inside = made_by == module or made_by.startswith(f"{module}.") or module.startswith(f"{made_by}.")
    return inside or (record.role == "in" and record.site.startswith(f"{module}.in."))


def _both_states(
    window: Window, record: Record | None, port_record: Record | None
) -> tuple[ModuleState, ModuleState] | None:
    """Return what the modules that made the two records held while they ran."""
    if record is None or port_record is None:
        return None
    ref, port = window.ref_states.get(record.module), window.port_states.get(port_record.module)
    return None if ref is None or port is None else (ref, port)


def _settings(ref: ModuleState, port: ModuleState) -> dict[str, tuple[Any, Any]]:
    """Return the scalar attributes that both modules have under one name."""
    return {name: (ref.settings[name], port.settings[name]) for name in ref.settings if name in port.settings}


def _relative(source: str) -> str:
    """Return a path below the working folder as relative."""
    here = os.getcwd() + os.sep
    return source.removeprefix(here)
