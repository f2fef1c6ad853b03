"""Confidence: rising with the score, and as often right as it says."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from parity.diagnose.calibration import POINTS, calibrated, fit
from parity.lab.gauntlet import Score
from parity.lab.gauntlet_table import reliability


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_a_fit_rises_and_stays_a_probability(scored: list[tuple[float, bool]]) -> None:
    points = fit(scored)
    assert points
    assert all(0 < y < 1 for _, y in points)
    values = [calibrated(x / 20, points) for x in range(21)]
    assert all(0 <= v <= 1 for v in values)
    assert values == sorted(values)
    xs = [x for x, _ in points]
    assert xs == sorted(xs)


def test_a_fit_says_what_was_true() -> None:
    draw = random.Random(0)
    scored = [(s, draw.random() < s**2) for s in (draw.random() for _ in range(4000))]
    points = fit(scored, least=100)
    assert all(abs(calibrated(x, points) - x**2) < 0.1 for x in (0.3, 0.5, 0.7, 0.9))


def test_the_fitted_points_rise() -> None:
    for points in POINTS.values():
        assert list(points) == sorted(points)
        assert [y for _, y in points] == sorted(y for _, y in points)


def test_a_hint_is_never_sure() -> None:
    assert max(y for _, y in POINTS["hint"]) < 0.8


def test_reliability_counts_right_causes() -> None:
    def score(*listed: tuple[float, bool], classed: bool = True) -> Score:
        told = tuple((score, right, "") for score, right in listed)
        return Score("s", "f", "fault", "diverged", True, classed=classed, listed=told)

    scores = [
        score((0.97, True), (0.6, False)),
        score((0.97, True)),
        score((0.97, False)),
        score((0.6, True), classed=False),
    ]
    rows = reliability(scores)
    assert [row.count for row in rows] == [1, 3]
    assert [round(row.right, 2) for row in rows] == [0.0, 0.67]
    assert abs(rows[1].stated - calibrated(0.97)) < 1e-9
