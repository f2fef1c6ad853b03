"""Noise that one run does not show: how far rounding takes a value that a formula amplifies.

The reference's own error (docs/floors.md) is one sample of its rounding noise. Where a formula amplifies (a division by a small sum, a difference of near equals) one
sample may be lucky by more than the factor that floors allow. So before a site is blamed whose formula is known to be right (alone in float64, on the reference's values, it
agrees), the reference runs again as deployed with every recorded value moved by a rounding of its dtype, and the site may be off by what that does there, times two: the
difference of two samples against one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from parity.capture.recorder import Override
from parity.case import Case, Setting
from parity.case.seeding import normal
from parity.compare.floors import ISOLATION, NOISE, UNIT
from parity.compare.measure import own_errors
from parity.errors import SideError
from parity.result import Divergence, Row, format_key
from parity.run.side import reseating, run_side
from parity.trace import Trace

SAMPLES = 2
ROUNDING = 3**-0.5  # standard deviation of a rounding error, in units of roundoff


def excuse_noise(
    divergences: Sequence[Divergence],
    local: Sequence[Divergence],
    rows: Sequence[Row],
    case: Case,
    setting: Setting,
    reference: Trace,
    notes: list[str],
) -> list[Divergence]:
    """Take back divergences of deployed values that rounding alone makes as large, where the formula is known to be right.

    local: what isolation found; behind its first, errors are no noise. Costs two runs of the reference, only when the first divergence of all is in doubt.
    """
    found = sorted([*divergences, *local], key=lambda d: d.order)
    agreed = {row.key for row in rows if row.diverged and row.isolated <= ISOLATION}
    if not found or not _in_doubt(found[0], agreed):
        return list(divergences)
    end = min((d.order for d in local), default=float("inf"))
    doubtful = {d.key: d for d in divergences if d.order < end and _in_doubt(d, agreed)}
    try:
        limits = noise_of(case, setting, reference)
    except SideError as error:
        notes.append(f"no second sample of the reference's noise: {error}")
        return list(divergences)
    excused = {key: d for key, d in doubtful.items() if d.error <= NOISE * limits.get(d.site, 0.0)}
    if excused:
        first = next(iter(excused.values()))
        notes.append(
            f"{first.site} and {len(excused) - 1} other records: over the floor ({first.error:.1e} of {first.floor:.1e}), but roundings alone move the "
            f"reference by {limits[first.site]:.1e} there, and alone in float64 the port agrees"
        )
    return [d for d in divergences if d.key not in excused]


def noise_of(case: Case, setting: Setting, reference: Trace) -> Mapping[str, float]:
    """Return, by site, the largest error that roundings of the recorded values make in the deployed reference."""
    if case.reference.recorded is not None:
        known: Mapping[str, float] = case.reference.recorded.trace.manifest.floors.get("rounding", {})
        return known
    largest: dict[str, float] = {}
    kept = reseating(case, reference)
    for sample in range(SAMPLES):
        moved = run_side(case, "reference", setting, override=_rounding(setting.seed + sample, kept)).trace
        for key, error in own_errors(reference, moved).items():
            record = reference.get(key)
            if record is not None and error == error:
                largest[record.site] = max(largest.get(record.site, 0.0), error)
    return largest


def _rounding(seed: int, kept: Override | None) -> Override:
    """Return an override that moves every floating value by one rounding of its dtype, but keeps what the case re-seats."""

    def override(site: str, coords: Mapping[str, int], value: Tensor) -> Tensor | None:
        fixed = kept(site, coords, value) if kept is not None else None
        unit = UNIT.get(str(value.dtype).removeprefix("torch."), 0.0)
        if fixed is not None or not value.is_floating_point() or not unit:
            return fixed
        noise = normal(value.shape, seed, f"rounding/{format_key(site, coords)}", torch.float64).to(value.device)
        return (value.double() * (1 + ROUNDING * unit * noise)).to(value.dtype)

    return override


def _in_doubt(found: Divergence, agreed: set[str]) -> bool:
    return found.tier == "run" and found.metric == "rel_l2" and found.key in agreed
