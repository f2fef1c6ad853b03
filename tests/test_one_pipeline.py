"""Two traces on disk give what the run itself gives as deployed: `parity compare` goes through the same stages as `parity run`.

CI takes a sample within a budget; PARITY_EVERY_TRACE=1 takes every fault and variation of the synthetic and the Wan gauntlet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

import pytest

import parity
from parity.case import Fault, Setting, System, Variation
from parity.case.discovery import find_systems
from parity.lab.gauntlet_sample import drawn
from parity.pipeline import Prepared, prepare, run_case
from parity.result import Result
from parity.trace.store import write_trace

SECONDS = 20.0  # of processor time
CASES = 4
EVERY = bool(os.environ.get("PARITY_EVERY_TRACE"))
SEED = int(os.environ.get("PARITY_GAUNTLET_SEED", "8"))


def deployed(result: Result) -> tuple[str, str | None]:
    """Return the verdict and the first site of the comparison as deployed alone."""
    own = [d for d in result.divergences if d.tier in ("run", "static")]
    first = min(own, key=lambda d: (d.order, d.metric == "extra"), default=None)
    verdict = result.verdict if first is not None or not result.divergences else "match"
    return verdict, first.key if first is not None else None


def alternating(items: list[tuple[System, Fault | Variation]]) -> list[tuple[System, Fault | Variation]]:
    """Return faults and variations in turn, so that a budget that ends early has seen both."""
    kinds = ([pair for pair in items if isinstance(pair[1], kind)] for kind in (Fault, Variation))
    return [pair for pairs in zip_longest(*kinds) for pair in pairs if pair is not None]


def chosen_items(systems: Mapping[str, System]) -> Iterator[tuple[System, Fault | Variation]]:
    """Yield every item; without EVERY those of a few cases alone, whose reference is then run once for many."""
    items = alternating(list(drawn(systems, SEED)))
    cases = {(system.name, item.case, item.dtype) for system, item in items[:CASES]}
    yield from (pair for pair in items if EVERY or (pair[0].name, pair[1].case, pair[1].dtype) in cases)


def both_ways(
    system: System, item: Fault | Variation, prepared: dict[object, Prepared], folder: Path
) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    case = system.case(item.case)
    setting = Setting(dtype=item.dtype or case.dtypes[0])
    both = isinstance(item, Variation) and item.side == "both"
    key = None if both else (case.label, setting.dtype)
    if key is not None and key not in prepared:
        prepared[key] = prepare(case, setting, isolate=False)
    chosen = {"fault": item} if isinstance(item, Fault) else {"variation": item}
    result, runs = run_case(
        case, setting, isolate=False, diagnose=False, free=False, prepared=prepared.get(key) if key else None, **chosen
    )
    assert runs.recorded is not None
    write_trace(runs.reference, folder / "reference")
    write_trace(runs.recorded, folder / "port")
    again = parity.compare(parity.load_trace(folder / "reference"), parity.load_trace(folder / "port"))
    return deployed(result), deployed(again)


def test_traces_alone_are_judged_as_the_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = {name: system for name, system in find_systems().items() if name in ("synthetic", "wan")}
    prepared: dict[object, Prepared] = {}
    other, verdicts = [], []
    start = time.process_time()
    for number, (system, item) in enumerate(chosen_items(systems)):
        if not EVERY and time.process_time() - start > SECONDS:
            break
        ran, compared = both_ways(system, item, prepared, tmp_path / str(number % 2))
        verdicts.append(ran[0])
        if ran != compared:
            other.append((system.name, item.name, ran, compared))
    with capsys.disabled():
        print(
            f"\n{len(verdicts)} runs judged twice, seed {SEED}: {verdicts.count('diverged')} diverged, {len(other)} differ"
        )
    assert other == []
    assert {"match", "diverged"} <= set(verdicts)
