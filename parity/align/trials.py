"""Trials: what the values of runs in float64 say of the pairs that were only inferred.

A pair that nobody gave is a hypothesis. Where its two values agree, it stands. Where they do not, the port is wrong there or the pair is: the port runs once
more with the reference's value put in that one place. If later values that differed now agree, the pair is right and the port's value is wrong. If
later values that agreed now differ, the port needed its own value: the pair is wrong (another boundary, another order that the next operation undoes), and
is dropped. Pairs of one template (the same place in other blocks) are tried together, and a few of them one by one where that fails. A difference that the trial confirms is taken out of the way for
the trials that follow, as the reference's value stays in its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from parity.align.by_values import moments, near
from parity.align.pieces import fit_calls
from parity.trace import Trace
from parity.trace.names import NameMap

MOST_TRIALS = 24  # runs of the port; what is not decided by then stands by its other evidence
SAME = 1e-5  # of values of one formula in float64, whose constants may be float32
_CHANGED = 30.0  # times that an error must grow or shrink to count as an effect of the exchange
_LEAST = 1e-8  # an error below this is none
_FEW = 4  # pairs of one template are tried one by one where together they spoil what follows
_ORDER_FREE = 1e-7  # of moments of the same numbers in another order

Swap = Callable[
    [NameMap, Collection[str]], Trace
]  # the port's run under a map, with the reference's values at these of its sites


@dataclass(frozen=True)
class Hypothesis:
    """A port site and the reference sites that it may be (several: one fused value)."""

    port: str
    references: tuple[str, ...]
    how: str
    order: int  # of the first of them in the reference's run
    changed: bool = False  # the module that makes the value holds other weights: a difference that changes nothing is one all the same

    @property
    def template(self) -> tuple[str, str]:
        return template_of(self.port, self.references[0])


@dataclass(frozen=True)
class Findings:
    """What the trials found.

    wrong: hypotheses that values veto. confirmed: those that differ, and whose exchange heals later values. errors: reference site -> largest
    error over the calls. healed: the port's trace (under the map) with the reference's values at the confirmed places. whole: the largest error of a
    result, with nothing exchanged. unclear: those that differ, and whose exchange changes nothing.
    """

    wrong: tuple[Hypothesis, ...]
    confirmed: tuple[Hypothesis, ...]
    errors: Mapping[str, float]
    healed: Trace | None
    whole: float
    unclear: tuple[Hypothesis, ...]


def template_of(port: str, reference: str) -> tuple[str, str]:
    """Return what a pair has in common with the same pair of other blocks."""
    return re.sub(r"\d+", "#", port), re.sub(r"\d+", "#", reference)


def renamed(trace: Trace, names: NameMap) -> Trace:
    """Return a trace that was recorded under the port's own names as one recorded under `names`."""
    made = Trace(manifest=trace.manifest)
    for record in trace:
        value = trace.tensor(record.key)
        for target in names.targets(record.site) or ():
            seen, layout = value, target.layout
            if value is not None:
                try:
                    seen = target.to_reference(value)
                except Exception:  # the pattern does not fit: let the shapes speak
                    layout = f"{target.layout} (does not fit)"
            origin = record.site if record.site != target.site else ""
            shape = tuple(seen.shape) if seen is not None else record.shape
            new = replace(record, site=target.site, order=len(made), shape=shape, origin=origin, layout=layout)
            if new.key not in made:
                made.add(new, seen)
    return made


def site_errors(reference: Trace, port: Trace) -> dict[str, float]:
    """Return reference site -> largest relative error over the calls that both sides made; inf where the shapes do not fit."""
    fitted, _ = fit_calls(reference, port)
    found: dict[str, float] = {}
    for record in reference:
        other = fitted.get(record.key)
        if other is None:
            continue
        error = apart(reference.tensor(record.key), fitted.tensor(other.key))
        if error == error:
            found[record.site] = max(found.get(record.site, 0.0), error)
    return found


def apart(r: Tensor | None, p: Tensor | None) -> float:
    """Return the relative L2 error of `p`; the share of unequal elements for integers; nan when unknown, inf when the shapes do not fit."""
    if r is None or p is None:
        return math.nan
    if r.shape != p.shape:
        if r.dim() != p.dim() or any(n != m and 1 not in (n, m) for n, m in zip(r.shape, p.shape, strict=True)):
            return math.inf
        r, p = torch.broadcast_tensors(r, p)
    if not r.numel():
        return 0.0
    if not (r.is_floating_point() or r.is_complex() or p.is_floating_point()):
        return float((r != p).double().mean())
    wide = torch.complex128 if r.is_complex() or p.is_complex() else torch.float64
    r, p = r.detach().to(wide), p.detach().to(wide)
    gone = ~torch.isfinite(r)
    if bool(gone.any()):
        if not torch.equal(gone, ~torch.isfinite(p)):
            return math.inf
        r, p = r.masked_fill(gone, 0.0), p.masked_fill(gone, 0.0)
    whole = float(torch.linalg.vector_norm(r))
    error = float(torch.linalg.vector_norm(p - r))
    if whole == 0:
        whole = float(torch.linalg.vector_norm(p))
    return error / whole if whole > 0 else 0.0


@dataclass
class _State:
    """Where the trials stand."""

    errors: dict[str, float]
    trace: Trace
    swapped: set[str] = field(default_factory=set)
    runs: int = 0


def try_pairs(
    hypotheses: Sequence[Hypothesis],
    names: NameMap,
    reference: Trace,
    port: Trace,
    swap: Swap | None,
    results: Collection[str],
    tolerance: float = SAME,
) -> Findings:
    """Try every hypothesis whose values differ, in the reference's order.

    port: its run under `names` with nothing exchanged. results: reference sites of what the run returns. swap: runs the port again.
    """
    start = site_errors(reference, port)
    state = _State(dict(start), port)
    whole = max((start[site] for site in results if site in start), default=math.inf)
    sound = whole <= tolerance
    wrong: list[Hypothesis] = []
    confirmed: list[Hypothesis] = []
    done: set[tuple[str, str]] = set()
    for one in sorted(hypotheses, key=lambda h: h.order):
        if one.template in done or not _differs(one, state.errors, tolerance):
            continue
        done.add(one.template)
        together = [h for h in hypotheses if h.template == one.template and _differs(h, state.errors, tolerance)]
        groups = [together]
        while groups:
            group = groups.pop(0)
            sites = {site for h in group for site in h.references}
            decided = _reordered(group, reference, state.trace)
            trial: Trace | None = None
            if decided is None and swap is not None and state.runs < MOST_TRIALS:
                state.runs += 1
                trial = swap(names, state.swapped | sites)
                after = site_errors(reference, trial)
                decided = _effect(state.errors, after, sites, reference)
                if decided is False and 1 < len(group) <= _FEW and not sound:
                    groups = [
                        [h] for h in group
                    ]  # one of them may be right: its block is cut as the reference's, and wrong
                    continue
            if decided is None and not one.changed and _passed_by(group, hypotheses, state.errors, tolerance):
                decided = False
            if decided is None and sound and not one.changed:
                decided = False  # whatever it is, the port is right without it
            if decided is False:
                wrong += group
            elif decided and trial is not None:
                confirmed += group
                state.errors, state.trace = after, trial
                state.swapped |= sites
    settled = {id(h) for h in (*wrong, *confirmed)}
    rest = tuple(h for h in hypotheses if id(h) not in settled and _differs(h, state.errors, tolerance))
    healed = state.trace if state.swapped else None
    return Findings(tuple(wrong), tuple(confirmed), start, healed, whole, rest)


def _differs(one: Hypothesis, errors: Mapping[str, float], tolerance: float) -> bool:
    return any(errors.get(site, 0.0) > tolerance for site in one.references)


def _reordered(group: Sequence[Hypothesis], reference: Trace, port: Trace) -> bool | None:
    """Return False when some pair holds the same numbers in a layout that nothing can bring to the other's: it cannot be compared."""
    for site in (site for h in group for site in h.references):
        r, p = reference.tensor(site), port.tensor(site)
        if r is None or p is None or r.shape == p.shape or r.numel() != p.numel() or r.numel() < 4:
            continue
        if near(moments(r), moments(p), _ORDER_FREE):
            return False
    return None


def _passed_by(
    group: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis], errors: Mapping[str, float], tolerance: float
) -> bool:
    """Tell whether values of shapes that do not fit are followed, in the same block, by one that agrees: the computation went on without them."""
    for one in group:
        site = one.references[0]
        block = re.match(r"(?:.*?\.)?\d+(?=\.|$)", site)
        if errors.get(site) != math.inf or block is None:
            continue
        inside = [h for h in hypotheses if h.order > one.order and h.references[0].startswith(f"{block[0]}.")]
        if any(errors.get(h.references[0], math.inf) <= tolerance for h in inside if h not in group):
            return True
    return False


def _effect(
    before: Mapping[str, float], after: Mapping[str, float], sites: Collection[str], reference: Trace
) -> bool | None:
    """Tell whether the exchange healed later values (True), spoiled them (False), or did nothing: the last one that it touched decides."""
    decided: bool | None = None
    for site in reference.sites():
        if site in sites or site not in before or site not in after:
            continue
        old, new = before[site], after[site]
        if new > max(_CHANGED * old, _LEAST):
            decided = False
        elif old > max(_CHANGED * new, _LEAST):
            decided = True
    return decided
