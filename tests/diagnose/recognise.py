"""What the tests of the hypotheses share: seeded tensors, the best explanation, and silence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis

Found = tuple[str, str, Explanation]  # name, class id, explanation


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """N(0, 1) of a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def explain(ev: Evidence, hypotheses: Sequence[Hypothesis]) -> list[Found]:
    """All explanations, best first (as the ranking of parity.diagnose does)."""
    found = [(h, e) for h in hypotheses for e in h.test(ev)]
    found.sort(key=lambda pair: -(pair[1].confidence - 0.1 * min(1.0, pair[1].residual) + 0.05 * pair[0].simplicity))
    return [(h.name, e.class_id or h.class_id, e) for h, e in found]


def top(ev: Evidence, hypotheses: Sequence[Hypothesis]) -> Found:
    """The best explanation; fails when there is none."""
    found = explain(ev, hypotheses)
    assert found, "nothing was recognised"
    return found[0]


def named(ev: Evidence, hypotheses: Sequence[Hypothesis]) -> dict[str, str]:
    """Name -> class id of everything that fires with more than a hint's confidence."""
    return {name: class_id for name, class_id, e in explain(ev, hypotheses) if e.confidence >= 0.5}
