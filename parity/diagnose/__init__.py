"""Why it diverges: hypotheses tested on the numbers, ranked by how much of the difference they remove and how simple they are."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from parity.diagnose.calibration import POINTS, calibrated
from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, narrowed
from parity.diagnose.locality import describe
from parity.errors import caught
from parity.result import Cause

# One file a family of causes. An order of trial, not of rank.
FAMILIES = (
    "layout",
    "weights",
    "positions",
    "mask_records",
    "time",
    "conditioning",
    "caches",
    "randomness",
    "precision",
    "quantisation",
)
_log = logging.getLogger(__name__)
EXACT = 0.02  # share of the difference that an identity may leave
_LEAST = 0.05  # explanations less sure than this are not worth a line


CONDITION = (
    "mask",
    "rearranged",
)  # what is said of a mask whose axes the case has names for: it is no batch of heads and tokens


@cache
def hypotheses() -> tuple[Hypothesis, ...]:
    """Return every hypothesis of every family."""
    return tuple(h for family in FAMILIES for h in importlib.import_module(f"parity.diagnose.{family}").HYPOTHESES)


def diagnose(evidence: Evidence, most: int = 5) -> tuple[Cause, ...]:
    """Return the causes that explain the evidence, best first; empty when nothing does ("unexplained" is an honest answer).

    A hypothesis that raises on odd evidence does not explain it; the others still run. What was raised is logged.
    """
    found = _tested(evidence)
    narrow = narrowed(evidence)
    if narrow is not None:
        where = next((said for said in describe(evidence) if said.startswith("only")), "where they differ")
        found += [(score, replace(cause, text=f"{where}: {cause.text}")) for score, cause in _tested(narrow)]
    found.sort(key=lambda item: -item[0])
    return _distinct([cause for _, cause in found])[:most]


def _tested(evidence: Evidence) -> list[tuple[float, Cause]]:
    """Return what every hypothesis says, with its score."""
    found: list[tuple[float, Cause]] = []
    for hypothesis in hypotheses():
        if evidence.words and hypothesis.name not in CONDITION:
            continue
        try:
            explanations = list(hypothesis.test(evidence))
        except Exception as error:
            _log.info(
                "the hypothesis %r raised at %s: %s: %s", hypothesis.name, evidence.site, type(error).__name__, error
            )
            caught(f"the hypothesis {hypothesis.name} at {evidence.site}", error)
            continue
        for explanation in explanations:
            if explanation.confidence >= _LEAST and not explanation.parameters.get("benign"):
                found.append((score(hypothesis, explanation), _cause(hypothesis, explanation, evidence)))
    return found


def score(hypothesis: Hypothesis, explanation: Explanation) -> float:
    """Rank by confidence; a smaller residual and a simpler form break ties."""
    residual = explanation.residual if math.isfinite(explanation.residual) else 1.0
    return explanation.confidence - 0.1 * min(1.0, residual) + 0.05 * hypothesis.simplicity


def _cause(hypothesis: Hypothesis, explanation: Explanation, evidence: Evidence) -> Cause:
    proof = "identity" if explanation.residual <= EXACT and explanation.confidence >= 0.5 else "hint"
    return Cause(
        name=hypothesis.name,
        class_id=explanation.class_id or hypothesis.class_id,
        text=explanation.text,
        parameters=dict(explanation.parameters),
        residual=explanation.residual,
        confidence=calibrated(explanation.confidence, POINTS[proof]),
        site=evidence.site,
        score=explanation.confidence,
        proof=proof,
    )


def _distinct(causes: Sequence[Cause]) -> tuple[Cause, ...]:
    """Keep the best cause of each class and text."""
    kept: dict[str, Cause] = {}
    for cause in causes:
        kept.setdefault(cause.class_id, cause)
    return tuple(kept.values())
