"""Calls that only one side makes: a pass left out, a call repeated on its own result, state that was kept from an earlier run.

What a call means is read off its coordinates and its values: which index of which axis it has, what the same site does at other indices, and
which earlier value it repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from parity.diagnose.calibration import calibrated
from parity.result import Cause, Divergence, Result, format_key
from parity.run.side import Runs
from parity.trace import Record, Trace

Diagnose = Callable[[Divergence], tuple[Cause, ...]]

_SAME = 1e-6
_MOST_SEARCHED = 4000  # earlier records that a kept value is looked for in
_STEPS = ("step", "sigma", "timestep")


def absent_causes(
    divergence: Divergence, result: Result, runs: Runs, diagnose: Diagnose = lambda other: ()
) -> tuple[Cause, ...]:
    """Say what a call means that only one side makes; the first rule that holds.

    diagnose: explains a divergence that both sides have a value of.
    """
    if divergence.metric not in ("missing", "extra"):
        return ()
    for rule in (_never_held, _applied_again, _kept, _other_path, _first_like_others, _absent_pass):
        found = next(iter(rule(divergence, result, runs)), None)
        if found is not None:
            return (found,)
    if divergence.kind == "latent":
        other = _other_solver(divergence, result, diagnose)
        if other is not None:
            return (other,)
    side = "does not compute" if divergence.metric == "missing" else "computes"
    text = f"the port {side} {divergence.site} at {_where(divergence.coords)}"
    return (_cause("absent call", "N5", text, divergence, result, 0.6),)


def _other_solver(divergence: Divergence, result: Result, diagnose: Diagnose) -> Cause | None:
    """T4: a stage of the solver is missing or added, and the next latent that both sides have is another solver's."""
    outer = {axis: index for axis, index in divergence.coords.items() if axis not in _STEPS}
    for other in result.divergences:
        measured = other.kind == "latent" and other.metric not in ("missing", "extra", "shape")
        if measured and _within(other.coords, outer):
            return next((cause for cause in diagnose(other) if cause.class_id == "T4"), None)
    return None


def _never_held(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """K3: a state that the reference holds from here on, and the port at no time."""
    record = runs.reference.get(divergence.key)
    if divergence.metric != "missing" or record is None or record.role != "state":
        return
    if not any(other.site == record.site for other in runs.port):
        text = f"the port never holds {record.site}, which the reference has from {_where(record.coords)} on"
        yield _cause("absent state", "K3", text, divergence, result, 0.9)


def _applied_again(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """N6 (T3 for a schedule): an extra call whose argument is the result of the call before it."""
    if divergence.metric != "extra" or "call" not in divergence.coords:
        return
    record, given = runs.port.get(divergence.key), runs.port.tensor(divergence.key)
    if record is None or given is None or record.role != "in":
        return
    after = next((r for r in runs.port.records[record.order + 1 :] if r.role != "in"), None)
    earlier = reversed(runs.port.records[: record.order])
    before = None if after is None else next((r for r in earlier if r.site == after.site), None)
    made = runs.port.tensor(before.key) if before is not None else None
    if before is None or made is None or not _same(given, made):
        return
    text = f"{before.site} is computed a second time from its own result ({_where(divergence.coords)})"
    yield _cause("applied again", "T3" if before.kind == "schedule" else "N6", text, divergence, result, 0.95)


def _kept(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """K4: in a later run of the outermost axis, something of an earlier one is used instead of what belongs there."""
    axis = next(iter(divergence.coords), "")
    index = divergence.coords.get(axis, 0)
    if axis in ("", "call") or index == 0:
        return
    if divergence.metric == "extra":
        value = runs.port.tensor(divergence.key)
        source = None if value is None else _earlier_equal(runs.port, value, axis, index, "")
        if source is not None:
            text = (
                f"the port uses {divergence.site} at {axis} {index}, which is still {source}: state that was not reset"
            )
            yield _cause("state kept", "K4", text, divergence, result, 0.93)
        return
    if not any(r.site == divergence.site and r.coords.get(axis, 0) < index for r in runs.port):
        return
    for other in result.divergences:
        if other.coords.get(axis) != index or other.metric in ("missing", "extra", "shape"):
            continue
        value = runs.port.tensor(other.key)
        source = None if value is None else _earlier_equal(runs.port, value, axis, index, other.site)
        if source is not None:
            text = f"the port does not compute {divergence.site} at {axis} {index}: {other.site} is still {source}"
            yield _cause("state kept", "K4", text, divergence, result, 0.93)
            return


def _other_path(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """T7 (K4 where no solver is seen): a later run begins with the calls that otherwise come only after the first step."""
    axes = [axis for axis in divergence.coords if axis != "call"]
    if len(axes) < 2 or divergence.coords[axes[-1]] != 0 or all(divergence.coords[a] == 0 for a in axes[:-1]):
        return
    extra = _only(result, "extra", divergence.coords)
    missing = _only(result, "missing", divergence.coords)
    if not extra or not missing:
        return
    late = all(r.coords.get(axes[-1], 0) > 0 for r in runs.reference if r.site in extra)
    early = all(r.coords.get(axes[-1], 0) == 0 for r in runs.reference if r.site in missing)
    if late and early:
        solver = any(r.kind in ("latent", "schedule") for r in runs.port if r.site in extra)
        text = (
            f"at {_where(divergence.coords)} the port computes {sorted(extra)[0]} where the reference computes {sorted(missing)[0]}, "
            f"as it does only in the first {axes[-1]}: history of an earlier run survives"
        )
        yield _cause("history kept", "T7" if solver else "K4", text, divergence, result, 0.92)


def _first_like_others(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """V1: a call that the reference makes at every index of an axis but the first is made there too (or is left out after it)."""
    axes = [axis for axis in divergence.coords if axis != "call"]
    if divergence.metric != "extra" or not axes or divergence.coords[axes[-1]] != 0 or axes[-1] in _STEPS:
        return
    outer = {a: divergence.coords[a] for a in axes[:-1]}
    every = [r for r in runs.reference if r.site == divergence.site]
    others = [r for r in every if _within(r.coords, outer)] or every
    if others and all(r.coords.get(axes[-1], 0) > 0 for r in others):
        text = f"the port computes {divergence.site} for the first {axes[-1]} too, which the reference leaves out there"
        yield _cause("first like the others", "V1", text, divergence, result, 0.9)


def _absent_pass(divergence: Divergence, result: Result, runs: Runs) -> Iterator[Cause]:
    """K3: a pass of its own is made by one side only. V7, T5: it is the last of several."""
    if not divergence.coords:
        return
    own, other = (runs.reference, runs.port) if divergence.metric == "missing" else (runs.port, runs.reference)
    here = [r for r in own if dict(r.coords) == dict(divergence.coords) and r.role != "state"]
    if sum(r.key in other for r in here) > 0.1 * len(here):
        return
    axis = next(a for a in reversed(list(divergence.coords)) if a != "call" or len(divergence.coords) == 1)
    outer = {a: i for a, i in divergence.coords.items() if a not in (axis, "call")}
    counts = [_count(trace, axis, outer) for trace in (runs.reference, runs.port)]
    many = f"{len(here)} records stand alone"
    if min(counts) == divergence.coords[axis] and axis != "call" and min(counts) > 0:
        text = f"the port makes {counts[1]} passes of {axis} where the reference makes {counts[0]}: {many}"
        yield _cause("other count of passes", "T5" if axis in _STEPS else "V7", text, divergence, result, 0.85)
        return
    where = _where(divergence.coords)
    missing = f"the port has no pass at {where}: {many}"
    extra = f"the port makes a pass at {where} that the reference does not: {many}"
    text = missing if divergence.metric == "missing" else extra
    yield _cause("absent pass", "K3", text, divergence, result, 0.8)


def _count(trace: Trace, axis: str, outer: Mapping[str, int]) -> int:
    return len({r.coords[axis] for r in trace if axis in r.coords and _within(r.coords, outer)})


def _within(coords: Mapping[str, int], outer: Mapping[str, int]) -> bool:
    return all(coords.get(axis) == index for axis, index in outer.items())


def _only(result: Result, metric: str, coords: Mapping[str, int]) -> set[str]:
    return {d.site for d in result.divergences if d.metric == metric and dict(d.coords) == dict(coords)}


def _earlier_equal(trace: Trace, value: Tensor, axis: str, index: int, site: str) -> str | None:
    """Return the key of a record of an earlier run that holds this value (of the same site, when one is given)."""
    searched: Sequence[Record] = [
        r for r in trace if r.coords.get(axis, index) < index and (r.site == site if site else r.role != "in")
    ]
    if value.numel() < 4:
        return None
    for record in reversed(searched[-_MOST_SEARCHED:]):
        if record.shape == tuple(value.shape):
            other = trace.tensor(record.key)
            if other is not None and _same(value, other):
                return format_key(record.site, record.coords)
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel() or a.numel() == 0:
        return False
    x, y = a.double().flatten(), b.double().flatten()
    return float(torch.linalg.vector_norm(x - y)) <= _SAME * float(torch.linalg.vector_norm(y)) and bool(y.any())


def _where(coords: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {index}" for axis, index in coords.items()) or "any coordinate"


def _cause(name: str, class_id: str, text: str, divergence: Divergence, result: Result, sure: float) -> Cause:
    same = [d for d in result.divergences if d.metric == divergence.metric and d.coords == divergence.coords]
    return Cause(name, class_id, text, {"records": len(same)}, 0.0, calibrated(sure), divergence.site, sure)
