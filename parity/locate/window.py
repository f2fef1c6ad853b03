"""Windows: both sides run once more on the reference's values, with the operations before a diverging record logged, and the line where the port leaves the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from parity.capture.module_state import ModuleState
from parity.capture.operations import CallLog, Frame, OpLog, Step, own_frame
from parity.capture.recorder import Override
from parity.case import Case, Setting
from parity.errors import SideError, caught
from parity.locate.operation import Departure, describe_op, find_departure
from parity.result import Culprit, Divergence, format_key
from parity.run.side import Inject, Runs, SideRun, grafting, reseating, run_side
from parity.trace import Record, Trace

Relabel = Mapping[str, Callable[[Tensor], Tensor]]


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
    kept: tuple[tuple[int, int], tuple[int, int]] = (
        (0, 0),
        (0, 0),
    )  # from and up to which steps earlier calls ran, of either side


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


def reach_back(
    case: Case, setting: Setting, runs: Runs, key: str, upcast: bool, inject: Inject | None, order: Relabel
) -> Window | None:
    """Return the window of a record from the start of the run on: what was kept since then (caches, histories, tables) has its makers in it."""
    values, port = (runs.precise, runs.isolated or runs.port) if upcast else (runs.reference, runs.port)
    if values is None or key in runs.pieces:
        return None
    graft = grafting(values), grafting(values, order, runs.pieces)
    window = _windows(case, setting, values, port, [key], inject, graft, upcast, whole=True).get(key)
    return window if window is not None and _made_in(window, values, key) else None


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
    whole: bool = False,
) -> dict[str, Window]:
    """Log the operations before each of `keys`, both sides continuing from `values` after every record.

    wide: from the start of the module call that made the record, not from the last agreeing record before it. whole: from the start of the run.
    """
    found: dict[str, tuple[OpLog, SideRun]] = {}
    closing = frozenset(keys)
    for which, change, override in (("reference", None, graft[0]), ("port", inject, graft[1])):
        log = OpLog({key: None if whole else _before(key, values, port_trace, which, wide) for key in keys})
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
        except SideError as failure:
            caught(f"the {which}'s operations", failure)
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
            (ref_log.kept.get(key, (0, 0)), port_log.kept.get(key, (0, 0))),
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
        except SideError as failure:
            caught(f"the {which}'s calls", failure)
            return Window()
    return Window(common=frozenset(logs["reference"].functions), calls=logs["port"].calls)


def _goes_on(divergence: Divergence, runs: Runs) -> str | None:
    """Return the port's first record after the last one that it shares with the reference before a missing call."""
    record = runs.reference.get(divergence.key)
    earlier = runs.reference.records[: record.order] if record is not None else ()
    last = next((partner for r in reversed(earlier) if (partner := runs.port.get(r.key)) is not None), None)
    start = last.order + 1 if last is not None else 0
    return runs.port.records[start].key if start < len(runs.port) else None


def _relative(source: str) -> str:
    """Return a path below the working folder as relative."""
    here = os.getcwd() + os.sep
    return source.removeprefix(here)
