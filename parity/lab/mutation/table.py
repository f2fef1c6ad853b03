"""The score table of mutants: one row a half, a family, a kind of edit, or a shape of the port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity.lab.gauntlet_table import Reliability, markdown_table, reliability_of
from parity.lab.mutation.score import FamilyOutcome, Outcome, aside

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("mutants", "detected", "module", "line", "top 1", "top 3", "verified", "verified wrong", "0.9 right", "seconds")  # fmt: skip


def frame(found: Sequence[FamilyOutcome]) -> pd.DataFrame:
    """Return one row a mutant. `sure`, `sure_right`: causes of any rank with a confidence of 0.9 or more, and those of the right class."""
    import pandas as pd

    return pd.DataFrame([_row(o) for f in found for o in f.outcomes])


def _row(outcome: Outcome) -> dict[str, object]:
    sure = [cause for cause in outcome.causes if cause.confidence >= 0.9]
    return {
        "half": outcome.half,
        "family": outcome.family,
        "kind": outcome.kind,
        "shape": "renamed" if outcome.renamed else "as it is",
        "detected": outcome.detected,
        "module": outcome.module,
        "line": outcome.line,
        "top 1": outcome.top1,
        "top 3": outcome.top3,
        "verified": outcome.verified,
        "verified wrong": outcome.verified_wrong,
        "sure": len(sure),
        "sure right": sum(cause.right for cause in sure),
        "seconds": outcome.seconds,
    }


def grouped(rows: pd.DataFrame, by: str) -> list[tuple[str, ...]]:
    """Return the table's cells, one row a value of the column `by`."""
    cells = []
    for name, group in rows.groupby(by):
        n = len(group)
        shares = [_share(int(group[c].sum()), n) for c in ("detected", "module", "line", "top 1", "top 3", "verified")]
        sure = _share(int(group["sure right"].sum()), int(group["sure"].sum()))
        wrong, seconds = str(int(group["verified wrong"].sum())), f"{group['seconds'].mean():.1f}"
        cells.append((str(name), str(n), *shares, wrong, sure, seconds))
    return cells


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({100 * part / whole:.0f} %)" if whole else "-"


def markdown(found: Sequence[FamilyOutcome], seed: int, commit: str = "") -> str:
    """Return the tables as Markdown: by half, family, kind and shape."""
    rows = frame(found)
    left = ", ".join(f"{n} {why}" for why, n in sorted(aside(tuple(found)).items())) or "none"
    clean = [verdict for family in found for verdict in family.clean]
    at = f" at commit `{commit}`" if commit else ""
    made = (
        f"Made by `parity mutants --seed {seed}`{at}. Edits that were tried and set aside: {left}. "
        f"Right twins (the same port without an edit): {sum(v == 'match' for v in clean)} of {len(clean)} match."
    )
    lines = [made]
    for by in ("half", "shape", "kind", "family"):
        lines += ["", markdown_table((by, *COLUMNS), grouped(rows, by))]
    return "\n".join([*lines, "", _confidence(found)]) + "\n"


def _confidence(found: Sequence[FamilyOutcome]) -> str:
    """Return what stated confidences were worth: on the half that they were fitted on, beside the half that was held out."""
    told: dict[str, dict[str, Reliability]] = {}
    for half in ("tuning", "held"):
        causes = [(c.confidence, c.right) for f in found if f.half == half for o in f.outcomes for c in o.causes]
        for row in reliability_of(causes):
            told.setdefault(f"{row.low:g} to {row.high:g}", {})[half] = row
    header = ("confidence", "tuned on: causes", "stated", "right", "held out: causes", "stated", "right")
    rows = [
        (name, *_three(told[name].get("tuning")), *_three(told[name].get("held")))
        for name in sorted(told, key=lambda name: float(name.partition(" ")[0]))
    ]
    return f"Of the causes of any rank that were named with a confidence in each range, how many had the right class.\n\n{markdown_table(header, rows)}"


def _three(row: Reliability | None) -> tuple[str, str, str]:
    return (str(row.count), f"{row.stated:.2f}", f"{row.right:.2f}") if row else ("-", "-", "-")
