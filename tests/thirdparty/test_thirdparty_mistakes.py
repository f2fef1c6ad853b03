"""Twenty mistakes in models that no one here wrote, none of which the harness was made for: placed and named."""

from __future__ import annotations

import re

import pytest
from thirdparty_mistakes import MISTAKES, Mistake, sides

import parity


@pytest.mark.parametrize("mistake", MISTAKES, ids=[found.name for found in MISTAKES])
def test_a_mistake_is_placed_and_named(mistake: Mistake) -> None:
    result = parity.check(*sides(mistake))
    assert result.verdict == "diverged"
    modules = [culprit.module for culprit in result.culprits]
    assert modules
    assert all(re.fullmatch(mistake.module, module) for module in modules), modules
    first = result.causes[:1]  # named, or not said to be sure
    assert all(c.class_id in mistake.classes or c.confidence < 0.9 for c in first), [
        (c.class_id, c.text) for c in first
    ]
