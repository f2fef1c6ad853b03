"""What a confidence means: of all causes with this grade of proof and this score, the share with the right class."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

Points = tuple[tuple[float, float], ...]

# Facts about two tensors, by grade of proof: (score of the test, share of right causes), fitted on the tuning half of the mutants and a sample of the gauntlets
# (hints: also on pairs of two authors, where most of them are wrong).
POINTS: Mapping[str, Points] = {
    "identity": ((0.7698, 0.2727), (0.8585, 0.3571), (0.936, 0.625), (0.9576, 0.8947), (0.9739, 0.9524)),
    "hint": ((0.55, 0.0588), (0.5833, 0.3478), (0.7105, 0.7143)),
}


def calibrated(score: float, points: Sequence[tuple[float, float]] = POINTS["identity"]) -> float:
    """Return the confidence of a score: linear between the fitted points, constant outside of them."""
    at = bisect_right([x for x, _ in points], score)
    if at == 0:
        return points[0][1]
    if at == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (score - x0) / (x1 - x0)


def fit(scored: Sequence[tuple[float, bool]], least: int = 8) -> tuple[tuple[float, float], ...]:
    """Return points (score, share right) that rise with the score: isotonic regression by pooling adjacent violators.

    scored: (score of a cause, whether it was right). least: blocks of fewer are pooled with their neighbour. The share of a block is
    taken after adding one right and one wrong answer, so that ten of ten do not mean certainty.
    """
    blocks: list[list[tuple[float, bool]]] = []
    for item in sorted(scored):
        blocks.append([item])
        while len(blocks) > 1 and (len(blocks[-2]) < least or _share(blocks[-2]) >= _share(blocks[-1])):
            last = blocks.pop()
            blocks[-1].extend(last)
    if len(blocks) > 1 and len(blocks[-1]) < least:
        last = blocks.pop()
        blocks[-1].extend(last)
    points: list[tuple[float, float]] = []
    for block in blocks:
        right = (sum(y for _, y in block) + 1) / (len(block) + 2)
        at_least = points[-1][1] if points else 0.0
        points.append((round(sum(x for x, _ in block) / len(block), 4), max(at_least, round(right, 4))))
    return tuple(points)


def _share(block: Sequence[tuple[float, bool]]) -> float:
    return sum(right for _, right in block) / len(block)
