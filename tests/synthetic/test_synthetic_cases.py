"""The synthetic models through the harness: every case matches, and so does a handful of harmless changes."""

from __future__ import annotations

from functools import cache

import pytest

from fixtures.synthetic.case import SYSTEM
from parity.case import Variation
from parity.lab.gauntlet import Runner
from parity.pipeline import run_case


@cache
def runner() -> Runner:
    return Runner(SYSTEM)


def variation(name: str) -> Variation:
    return next(v for v in SYSTEM.variations if v.name == name)


@pytest.mark.parametrize("case", SYSTEM.cases, ids=lambda case: case.name)
def test_a_case_matches(case) -> None:
    result, _ = run_case(case)
    assert result.verdict == "match", result.first
    assert result.coverage.compared == result.coverage.reference == result.coverage.port


@pytest.mark.parametrize(
    "name", ["int8_renamed", "int8_expanded", "int8_branch_order", "text_prompts_singly", "text_bf16"]
)
def test_a_harmless_change_is_silent(name: str) -> None:
    """Renamed modules, a part without a counterpart, another order, another batch, another dtype."""
    score = runner().score(variation(name))
    assert score.verdict == "match", score.found


def test_names_are_unique_and_every_fault_has_its_case() -> None:
    for items in (SYSTEM.faults, SYSTEM.variations):
        assert len({item.name for item in items}) == len(items)
        assert {item.case for item in items} == {case.name for case in SYSTEM.cases}
