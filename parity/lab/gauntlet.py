"""The gauntlet: all faults and all variations through the harness. The only place that reads what a fault expects."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import Progress

from parity.boundary.patterns import Pattern
from parity.case import Expectation, Fault, Setting, System, Variation
from parity.case.discovery import find_systems, get_system
from parity.errors import SideError
from parity.lab.places import modules_of
from parity.pipeline import Prepared, prepare, run_case
from parity.result import Cause, Result


@dataclass(frozen=True)
class Score:
    """How the harness did on one fault or variation."""

    system: str
    name: str
    kind: str  # "fault" or "variation"
    verdict: str
    detected: bool
    site: bool = False  # the first divergence is the expected tensor at the expected coordinates
    module: bool = False
    top1: bool = False
    top3: bool = False
    line: bool = False  # the source line that is named is one of the defect's own code
    lined: bool = False  # the fault has code of its own in the forward pass (else it is in weights or settings)
    classed: bool = True  # the fault's class is in the list of classes, so that a cause is expected
    found: str = ""
    culprit: str = ""
    source: str = ""
    causes: tuple[str, ...] = ()
    expected: str = ""
    confidence: float = 0.0
    verified: bool = False  # the first cause was proven by undoing it
    verified_wrong: bool = False  # some cause was proven so, and has a wrong class
    # of every cause that was named: its score before calibration, whether its class is right, and its grade of proof
    listed: tuple[tuple[float, bool, str], ...] = ()
    seconds: float = 0.0


class Runner:
    """Runs one system's faults and variations; the reference's runs are made once a case and dtype."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._prepared: dict[tuple[str, str], Prepared] = {}

    def result(self, item: Fault | Variation) -> Result:
        """Run the case that shows a fault (or holds a variation) and return its result."""
        case = self.system.case(item.case)
        setting = Setting(dtype=item.dtype or case.dtypes[0])
        both = isinstance(item, Variation) and item.side == "both"
        key = (case.name, str(setting.dtype))
        if key not in self._prepared and not both:
            self._prepared[key] = prepare(case, setting)
        kind: dict[str, Any] = {"fault": item} if isinstance(item, Fault) else {"variation": item}
        result, _ = run_case(case, setting, free=False, prepared=self._prepared.get(key), **kind)
        return result

    def score(self, item: Fault | Variation) -> Score:
        """Run and score one item."""
        start = time.perf_counter()
        try:
            result = self.result(item)
        except SideError as error:
            return Score(
                self.system.name,
                item.name,
                _kind(item),
                f"failed: {error}",
                isinstance(item, Fault),
                seconds=time.perf_counter() - start,
            )
        seconds = time.perf_counter() - start
        if isinstance(item, Variation):
            first = result.first.key if result.first else ""
            return Score(
                self.system.name,
                item.name,
                "variation",
                result.verdict,
                result.verdict != "match",
                found=first,
                seconds=seconds,
            )
        return score_fault(self.system.name, item.name, item.expect, result, seconds)


def score_fault(system: str, name: str, expect: Expectation, result: Result, seconds: float = 0.0) -> Score:
    """Score a result against what the fault expects."""
    first, culprit = result.first, result.culprit
    place = first is not None and re.fullmatch(expect.site, first.site) is not None
    place = place and first is not None and all(first.coords.get(axis) == i for axis, i in expect.coords.items())
    classes = [cause.class_id for cause in result.causes]
    module = culprit is not None and any(re.fullmatch(pattern, culprit.module) for pattern in modules_of(expect))
    return Score(
        system=system,
        name=name,
        kind="fault",
        verdict=result.verdict,
        detected=result.verdict == "diverged",
        site=place,
        module=module,
        top1=bool(classes) and classes[0] in expect.classes,
        top3=any(c in expect.classes for c in classes[:3]),
        line=culprit is not None and culprit.source is not None and on_one_of(culprit.source, expect.lines),
        lined=bool(expect.lines),
        classed=bool(expect.classes),
        found=first.key if first else "",
        culprit=culprit.module if culprit else "",
        source=(culprit.source or "") if culprit else "",
        causes=tuple(f"{c.class_id} {c.text}" for c in result.causes[:3]),
        expected=f"{expect.site} {dict(expect.coords) or ''} {'/'.join(expect.classes)}".strip(),
        confidence=result.causes[0].confidence if result.causes else 0.0,
        verified=bool(result.causes) and proof_of(result.causes[0]) == "verified",
        verified_wrong=any(proof_of(c) == "verified" and c.class_id not in expect.classes for c in result.causes),
        listed=tuple((c.score, c.class_id in expect.classes, proof_of(c)) for c in result.causes),
        seconds=seconds,
    )


def proof_of(cause: Cause) -> str:
    """Return how well a cause is proven: "verified", "replayed", …; empty where nothing is said."""
    return getattr(cause, "proof", "") or ""


def on_one_of(source: str, lines: str) -> bool:
    """Tell whether "file:line" lies in one of the places "file:first-last file:first-last …"; never when there is none."""
    file, _, number = source.rpartition(":")
    for place in lines.split():
        wanted, _, span = place.rpartition(":")
        first, last = map(int, span.split("-"))
        if file.endswith(wanted) and first <= int(number) <= last:
            return True
    return False


def run_gauntlet(
    systems: dict[str, System],
    names: Sequence[str],
    only: str = ".*",
    jobs: int = 1,
    progress: Progress | None = None,
    paths: list[Path] | None = None,
) -> list[Score]:
    """Score every fault and variation of the named systems (all when empty)."""
    chosen = [get_system(systems, n) for n in names] if names else list(systems.values())
    items: list[tuple[System, Fault | Variation]] = [
        (s, i) for s in chosen for i in list[Fault | Variation]([*s.faults, *s.variations])
    ]
    wanted = Pattern(only, "--only")
    todo = [(s.name, i.name, _kind(i)) for s, i in items if wanted.fullmatch(i.name)]
    task = progress.add_task("gauntlet", total=len(todo)) if progress else None
    found = []
    for score in _scores(systems, todo, jobs, paths):
        found.append(score)
        if progress is not None and task is not None:
            progress.update(task, advance=1, description=f"{score.system}: {score.name}")
    rank = {key: i for i, key in enumerate(todo)}
    return sorted(found, key=lambda s: rank[(s.system, s.name, s.kind)])


def _scores(
    systems: dict[str, System], todo: list[tuple[str, str, str]], jobs: int, paths: list[Path] | None
) -> Iterable[Score]:
    if jobs <= 1:
        runners: dict[str, Runner] = {}
        for system, name, kind in todo:
            runner = runners.setdefault(system, Runner(systems[system]))
            yield runner.score(_item(systems[system], name, kind))
        return
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(paths, os.getcwd(), list(systems))
    ) as pool:
        for future in as_completed([pool.submit(_work, *item) for item in todo]):
            yield future.result()


_RUNNERS: dict[str, Runner] = {}  # of a worker process


def _start(paths: list[Path] | None, folder: str, names: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    _RUNNERS.update({name: Runner(system) for name, system in find_systems(paths=paths, names=names).items()})


def _work(system: str, name: str, kind: str) -> Score:
    runner = _RUNNERS[system]
    return runner.score(_item(runner.system, name, kind))


def _item(system: System, name: str, kind: str) -> Fault | Variation:
    pool: Sequence[Fault | Variation] = system.faults if kind == "fault" else system.variations
    return next(item for item in pool if item.name == name)


def _kind(item: Fault | Variation) -> str:
    return "fault" if isinstance(item, Fault) else "variation"
