"""What a stated confidence means, fitted on mutants of the tuning half only: one small table a grade of proof."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.diagnose.calibration import fit
from parity.errors import ParityError
from parity.lab.mutation.families import families

Points = tuple[tuple[float, float], ...]


def fitted(path: Path) -> dict[str, Points]:
    """Return, for each grade of proof, points (score, share right) fitted on a result of `parity mutants --half tuning --json`.

    Raises ParityError when the file holds a family of the held half: nothing is ever fitted on that.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["families"]
        held = {f.name for f in families("held")} & {f["family"] for f in found}
        causes = [cause for f in found for outcome in f["outcomes"] for cause in outcome["causes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParityError(f"cannot read {path} as a result of parity mutants --json: {error}") from None
    if held:
        raise ParityError(
            f"{path} holds families of the held half ({', '.join(sorted(held))}): make it with --half tuning"
        )
    return fit_by_proof(causes)


def fit_by_proof(causes: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Fit each grade by itself. causes: with `proof`, `score` and `right`."""
    grades: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for cause in causes:
        grades[cause["proof"]].append((float(cause["score"]), bool(cause["right"])))
    return {grade: fit(scored, least=min(20, len(scored))) for grade, scored in sorted(grades.items())}


def as_source(table: Mapping[str, Points]) -> str:
    """Return the table as it stands in parity/diagnose/calibration.py."""
    lines = [f"    {grade!r}: {points!r}," for grade, points in table.items()]
    return "\n".join(["POINTS: Mapping[str, Points] = {", *lines, "}"])
