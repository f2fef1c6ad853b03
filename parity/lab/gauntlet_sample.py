"""A sample of the gauntlet that fits a budget: other faults and variations for every seed, so that in time all of them are run."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from datetime import date

from parity.case import Fault, System, Variation
from parity.lab.gauntlet import Runner, Score


def week_seed(day: date) -> int:
    """Return the year and ISO week of a day as one number, 202648 for the last week of November 2026."""
    year, week, _ = day.isocalendar()
    return 100 * year + week


def drawn(systems: Mapping[str, System], seed: int, share: float = 0.75) -> Iterator[tuple[System, Fault | Variation]]:
    """Yield faults and variations in an order that the seed draws: systems take turns, `share` of the items are faults."""
    draw = random.Random(seed)
    pools = {}
    for name, system in systems.items():
        faults, variations = list(system.faults), list(system.variations)
        draw.shuffle(faults)
        draw.shuffle(variations)
        pools[name] = (faults, variations)
    while any(f or v for f, v in pools.values()):
        for name in draw.sample(sorted(pools), len(pools)):
            faults, variations = pools[name]
            pool = faults if faults and (draw.random() < share or not variations) else variations
            if pool:
                yield systems[name], pool.pop()


def run_sample(systems: Mapping[str, System], seed: int, seconds: float) -> list[Score]:
    """Score drawn items until `seconds` of processor time are used; the last one is finished."""
    start, scores = time.process_time(), []
    runners: dict[str, Runner] = {}
    for system, item in drawn(systems, seed):
        if time.process_time() - start > seconds:
            break
        scores.append(runners.setdefault(system.name, Runner(system)).score(item))
    return scores
