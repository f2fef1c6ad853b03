"""A sample of the gauntlet with causes on: every week other faults and variations of every system, within a fixed time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from parity.case import System
from parity.case.discovery import find_systems
from parity.lab.gauntlet_command import line_of
from parity.lab.gauntlet_sample import drawn, run_sample, week_seed
from parity.lab.places import modules_of

SECONDS = 30.0  # of processor time; the item that runs when they are over is finished
ENOUGH = 4  # faults, for a share of them to say something: long videos leave time for one


@pytest.fixture(scope="module")
def systems() -> Mapping[str, System]:
    return find_systems()


def test_the_sample_of_this_week(systems: Mapping[str, System], capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("PARITY_GAUNTLET_SEED", "0")) or week_seed(datetime.now(tz=UTC).date())
    scores = run_sample(systems, seed, SECONDS)
    faults = [s for s in scores if s.kind == "fault"]
    variations = [s for s in scores if s.kind == "variation"]
    named = sum(s.top3 for s in faults if s.classed)
    with capsys.disabled():
        print(f"\ngauntlet sample, seed {seed}: {len(faults)} faults, {named} named, {len(variations)} variations")
    assert faults, "nothing was drawn"
    assert [line_of(s) for s in faults if not s.detected] == []
    assert [line_of(s) for s in variations if s.verdict != "match"] == []
    if len(faults) >= ENOUGH:
        assert named >= 0.5 * len(faults), "\n".join(line_of(s) for s in faults if not s.top3)


def test_another_week_draws_others_and_every_system_takes_its_turn(systems: Mapping[str, System]) -> None:
    def names(seed: int) -> list[tuple[str, str]]:
        return [(system.name, item.name) for system, item in drawn(systems, seed)]

    first, again, other = names(1), names(1), names(2)
    assert first == again != other
    assert sorted(first) == sorted(other)
    assert len(first) == sum(len(s.faults) + len(s.variations) for s in systems.values())
    assert {name for name, _ in first[: len(systems)]} == {
        name for name, s in systems.items() if s.faults or s.variations
    }


@pytest.mark.parametrize(("day", "seed"), [(date(2026, 11, 28), 202648), (date(2027, 1, 1), 202653)])
def test_the_seed_is_the_iso_week(day: date, seed: int) -> None:
    assert week_seed(day) == seed


def test_every_fault_says_which_module_is_right(systems: Mapping[str, System]) -> None:
    """An expectation of its own, that not every answer meets."""
    faults = {f"{system.name}/{fault.name}": fault for system in systems.values() for fault in system.faults}
    assert [name for name, fault in faults.items() if not modules_of(fault.expect)] == []
    loose = [n for n, f in faults.items() if any(re.fullmatch(m, "no.such_module") for m in modules_of(f.expect))]
    assert loose == []


def test_a_fault_with_code_of_its_own_says_where_that_is(systems: Mapping[str, System]) -> None:
    places = {place for s in systems.values() for f in s.faults for place in f.expect.lines.split()}
    assert len(places) > 100
    for place in places:
        file, _, span = place.rpartition(":")
        first, last = map(int, span.split("-"))
        assert 1 <= first <= last <= len(Path(file).read_text(encoding="utf-8").splitlines()), place
