"""Everything that an explanation may look at, collected around one divergence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.align.by_weights import pair_parameters
from parity.align.pairs import Alignment
from parity.capture.module_state import ModuleState
from parity.capture.operations import Op, Step
from parity.compare.floors import ISOLATION
from parity.compare.measure import HIDDEN, error_of, hidden_places
from parity.diagnose.evidence import Evidence
from parity.locate.first import owner
from parity.locate.window import Window
from parity.result import Divergence, Row
from parity.run.side import Runs
from parity.trace import Record, Trace

_LONGEST_DETOUR = 64


def gather(
    divergence: Divergence,
    runs: Runs,
    window: Window,
    module: str,
    rows: Sequence[Row],
    words: Mapping[str, Mapping[str, int]] | None = None,
) -> Evidence | None:
    """Collect what a hypothesis may look at. None when one side has no full tensor. words: the case's names of axes (regular expression for sites)."""
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
        words=next((axes for pattern, axes in (words or {}).items() if re.fullmatch(pattern, divergence.site)), {}),
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
        parameters=_suspects(pair_parameters(*states), module, rows) if states is not None else {},
        settings=_settings(*states) if states is not None else {},
        weights={
            f"{path}.{name}".lstrip("."): value
            for path, state in window.ref_states.items()
            for name, value in state.parameters.items()
            if "." not in name
        },
        port_sites=port.sites(),
        ref_ops=operations_of(window.ref_steps, window.kept[0]),
        port_ops=operations_of(window.port_steps, window.kept[1]),
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


def _suspects(
    parameters: Mapping[str, tuple[Tensor | None, Tensor | None]], module: str, rows: Sequence[Row]
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return the parameters that may be at fault: not those of a submodule that gives the reference's own output, alone in float64.

    Such a submodule keeps its weight in a form of its own (transposed, permuted) and uses it rightly.
    """
    judged: dict[str, bool] = {}
    for row in rows:
        judged[row.site] = judged.get(row.site, True) and row.isolated <= ISOLATION  # what it inherits is not its own
    owners = {name: f"{module}.{name.rpartition('.')[0]}".lstrip(".") for name in parameters if "." in name}
    right = {name for name in parameters if judged.get(owners.get(name, ""), False)}
    turned = any(_is_turned(*parameters[name]) for name in right)  # then that is how the port keeps its weights
    return {n: pair for n, pair in parameters.items() if n not in right and not (turned and _is_turned(*pair))}


def _is_turned(r: Tensor | None, p: Tensor | None) -> bool:
    """Tell whether one matrix is the other, transposed."""
    if r is None or p is None or r.dim() != 2 or p.shape != r.T.shape or torch.equal(r, r.T):
        return False
    return bool(torch.equal(p.to(r.dtype), r.T))


def operations_of(steps: Sequence[Step], kept: tuple[int, int]) -> tuple[Op, ...]:
    """Return logged steps as operations; those from kept[0] to kept[1] ran in earlier calls."""
    return tuple(replace(s.op, makers=s.makers, earlier=kept[0] <= i < kept[1]) for i, s in enumerate(steps))


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


def evidence_of(first: Divergence, alignment: Alignment, reference: Trace, port: Trace) -> Evidence | None:
    """Collect what two traces alone show around a divergence. None when one side has no full tensor."""
    pair = next((p for p in alignment.pairs if p.reference.key == first.key), None)
    if pair is None:
        return None
    r, p = reference.tensor(first.key), pair.port_tensor(port)
    if r is None or p is None:
        return None
    before = [r_.key for r_ in reference.records[max(0, first.order - 24) : first.order]]
    return Evidence(
        reference=r,
        port=p,
        site=first.site,
        coords=first.coords,
        kind=first.kind,
        module=owner(first, reference),
        floor=first.floor,
        inputs={key: t for key in before if (t := reference.tensor(key)) is not None},
        port_inputs={key: t for key in before if (t := port.tensor(key)) is not None},
        ref_at=reference.at,
        port_at=port.at,
        sites=reference.sites(),
    )
