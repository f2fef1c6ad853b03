"""The result of one comparison: the verdict, where it starts, and who did it."""

from __future__ import annotations

from collections.abc import Sequence

from parity.capture.environment import environment_differences
from parity.compare.verdict import verdict_of
from parity.locate.first import culprits, first_divergence, owner, training_owner
from parity.result import Coverage, Culprit, Divergence, Result, Row
from parity.run.side import Runs

EMPTY = "the result has no elements: it compares nothing"


def conclude(
    rows: Sequence[Row],
    divergences: Sequence[Divergence],
    local: Sequence[Divergence],
    coverage: Coverage,
    runs: Runs,
    notes: Sequence[str],
    allowance: float,
    constants: Sequence[Divergence] = (),
    whole: bool = True,
) -> Result:
    """Put a result together, without causes.

    local: divergences that do not depend on each other. constants: weights; what they do to a value comes first. whole: nothing that had to be compared is missing.
    """
    everything = [*divergences, *local, *constants]
    complete = whole and runs.reference.manifest.complete and runs.port.manifest.complete
    environment = {
        "reference": dict(runs.reference.manifest.environment),
        "port": dict(runs.port.manifest.environment),
        "differences": environment_differences(runs.reference.manifest.environment, runs.port.manifest.environment),
        "dtype": runs.reference.manifest.dtype,
        "device": runs.reference.manifest.device,
        "seed": runs.reference.manifest.seed,
    }
    first = first_divergence(everything)
    compared = {row.key for row in rows}
    found = culprits(local, runs.precise or runs.reference, compared) if local else ()
    culprit = (
        Culprit(
            training_owner(first, everything, runs.reference) or owner(first, runs.reference, compared),
            site=first.site,
            coords=dict(first.coords),
        )
        if first
        else None
    )
    return Result(
        verdict=verdict_of(everything, coverage, complete and EMPTY not in notes, allowance),  # type: ignore[arg-type]
        first=first,
        culprit=culprit,
        causes=(),
        coverage=coverage,
        divergences=tuple(sorted(everything, key=lambda d: d.order)),
        culprits=found or ((culprit,) if culprit else ()),
        rows=tuple(rows),
        environment=environment,
        notes=tuple(dict.fromkeys(notes)),
    )
