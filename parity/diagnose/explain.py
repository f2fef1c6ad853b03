"""From the first divergence to a cause: drill down to the operation, gather what surrounds it, test the hypotheses."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from parity.capture.module_state import tensors_of
from parity.capture.operations import Op, own_frame
from parity.case import Case, Setting
from parity.compare.floors import Floors
from parity.diagnose import diagnose
from parity.diagnose.absence import absent_causes
from parity.diagnose.edits import Found, causes_of, find_edits, line_of, merged, open_ends
from parity.diagnose.evidence import Evidence
from parity.diagnose.gather import _in_double, gather, operations_of
from parity.diagnose.locality import describe
from parity.diagnose.verify import verify
from parity.errors import CaseError, caught
from parity.locate.listing import listing
from parity.locate.window import Relabel, Window, _call_window, _look, _relative, _with_operation, reach_back
from parity.result import Cause, Culprit, Divergence, Result, format_key
from parity.run.side import Inject, Runs

_MOST_CULPRITS = 6
_log = logging.getLogger(__name__)


def explain(
    case: Case,
    setting: Setting,
    runs: Runs,
    result: Result,
    inject: Inject | None,
    order: Relabel,
    zoom: str = "",
    limits: Floors | None = None,
) -> Result:
    """Add culprit operations, causes and locality to a result with divergences; zoom: a site whose operations are listed."""
    assert result.first is not None
    targets = _targets(result)
    near = _zoomed(zoom, result, runs)
    wanted = dict.fromkeys(near, True) | {d.key: _in_double(d, runs) for _, d in targets}
    looks = _look(case, setting, runs, wanted, inject, order)
    culprits: list[Culprit] = []
    causes: list[Cause] = []
    said: list[str] = []
    divergences = {id(d): d for d in result.divergences}

    def alone(other: Divergence) -> tuple[Cause, ...]:
        evidence = gather(other, runs, Window(), other.module, result.rows)
        return diagnose(evidence) if evidence is not None else ()

    for i, (culprit, divergence) in enumerate(targets):
        window = looks.get(divergence.key, Window())
        if i == 0 and divergence.metric in ("missing", "extra") and divergence.kind != "gradient":
            window = _call_window(case, setting, runs, divergence, inject)
        culprits.append(_with_operation(culprit, divergence, window))
        evidence = gather(divergence, runs, window, culprit.module, result.rows, case.axis_words)
        if evidence is None:
            if i == 0:
                causes = list(absent_causes(divergence, result, runs, alone))
            continue
        if i == 0:
            own, line = _edits(case, setting, runs, evidence, window, inject, order, limits)
            if line is not None and line.source:
                # What both sides run was given something else by the port's own code around it.
                place = own_frame(line.frames, window.common) or (line if culprits[0].source is None else None)
                if place is not None:
                    culprits[0] = replace(culprits[0], source=_relative(place.source), code=place.code)
            causes = list(merged(own, diagnose(evidence)))
            said = evidence.said
        divergences[id(divergence)] = replace(divergence, locality=tuple(describe(evidence)))
    return replace(
        result,
        first=divergences.get(id(result.first), result.first),
        culprit=culprits[0] if culprits else result.culprit,
        culprits=(*culprits, *(c for c in result.culprits if c.module not in {known.module for known in culprits})),
        causes=tuple(causes),
        notes=tuple(dict.fromkeys([*result.notes, *said])),
        divergences=tuple(divergences[id(d)] for d in result.divergences),
        operations=_listed(near[0], looks.get(near[0], Window())) if near else (),
    )


def _edits(
    case: Case,
    setting: Setting,
    runs: Runs,
    evidence: Evidence,
    window: Window,
    inject: Inject | None,
    order: Relabel,
    limits: Floors | None,
) -> tuple[list[Cause], Op | None]:
    """Return the cause that the fewest edits give, and the operation it is about; verified where they can be undone. Odd operations end the search, not the explanation."""
    try:
        found, evidence = _found(case, setting, runs, evidence, window, inject, order)
        if found is None:
            return [], None
        proof = verify(case, setting, runs, found.explanation, inject, limits)
        return causes_of(found, evidence, proof), line_of(found)
    except Exception as error:
        _log.info("the search for edits raised at %s: %s: %s", evidence.site, type(error).__name__, error)
        caught(f"the search for edits at {evidence.site}", error)
        return [], None


def _found(
    case: Case, setting: Setting, runs: Runs, evidence: Evidence, window: Window, inject: Inject | None, order: Relabel
) -> tuple[Found | None, Evidence]:
    """Return the fewest edits in the window; where values from before it differ, in all that ran since the start."""
    held = [
        t for states in (window.ref_states, window.port_states) for state in states.values() for t in tensors_of(state)
    ]
    evidence = replace(evidence, held=held)
    found = find_edits(evidence)
    if not open_ends(evidence, held):
        return found, evidence
    key = format_key(evidence.site, evidence.coords)
    whole = reach_back(case, setting, runs, key, evidence.reference.dtype == torch.float64, inject, order)
    if whole is None:
        return found, evidence
    more = replace(
        evidence,
        ref_ops=operations_of(whole.ref_steps, whole.kept[0]),
        port_ops=operations_of(whole.port_steps, whole.kept[1]),
    )
    more.__dict__.pop("_memo", None)
    better = find_edits(more)
    return (better, more) if better is not None else (found, evidence)


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
