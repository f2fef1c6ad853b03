"""The gauntlet: all faults and all variations through the harness. The only place that reads what a fault expects."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from parity.case import Expectation, Fault, Setting, System, Variation
from parity.case.discovery import find_systems, get_system
from parity.diagnose.calibration import calibrated, fit
from parity.errors import SideError
from parity.files import write_text
from parity.pipeline import Prepared, prepare, run_case
from parity.result import Result


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
    line: bool = False  # the drill-down names a source line: that of the defect, where the fault says which it is
    lined: bool = False  # the fault says where the code of the defect is
    classed: bool = True  # the fault's class is in the list of classes, so that a cause is expected
    found: str = ""
    culprit: str = ""
    source: str = ""
    causes: tuple[str, ...] = ()
    expected: str = ""
    confidence: float = 0.0
    listed: tuple[
        tuple[float, bool], ...
    ] = ()  # of every cause that was named: its score before calibration, and whether its class is right
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
    module = culprit is not None and any(re.fullmatch(pattern, culprit.module) for pattern in expect.modules)
    return Score(
        system=system,
        name=name,
        kind="fault",
        verdict=result.verdict,
        detected=result.verdict == "diverged",
        site=place,
        module=module or (place and not expect.modules),
        top1=bool(classes) and classes[0] in expect.classes,
        top3=any(c in expect.classes for c in classes[:3]),
        line=culprit is not None and culprit.source is not None and _inside(culprit.source, expect.lines),
        lined=bool(expect.lines),
        classed=bool(expect.classes),
        found=first.key if first else "",
        culprit=culprit.module if culprit else "",
        source=(culprit.source or "") if culprit else "",
        causes=tuple(f"{c.class_id} {c.text}" for c in result.causes[:3]),
        expected=f"{expect.site} {dict(expect.coords) or ''} {'/'.join(expect.classes)}".strip(),
        confidence=result.causes[0].confidence if result.causes else 0.0,
        listed=tuple((c.score, c.class_id in expect.classes) for c in result.causes),
        seconds=seconds,
    )


def _inside(source: str, lines: str) -> bool:
    """Tell whether "file:line" lies in "file:first-last"; anywhere does when nothing is asked."""
    if not lines:
        return True
    file, _, number = source.rpartition(":")
    wanted, _, span = lines.rpartition(":")
    first, last = map(int, span.split("-"))
    return file.endswith(wanted) and first <= int(number) <= last


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
    todo = [(s.name, i.name, _kind(i)) for s, i in items if re.fullmatch(only, i.name)]
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
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(paths, os.getcwd())
    ) as pool:
        for future in as_completed([pool.submit(_work, *item) for item in todo]):
            yield future.result()


_RUNNERS: dict[str, Runner] = {}  # of a worker process


def _start(paths: list[Path] | None, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    _RUNNERS.update({name: Runner(system) for name, system in find_systems(paths=paths).items()})


def _work(system: str, name: str, kind: str) -> Score:
    runner = _RUNNERS[system]
    return runner.score(_item(runner.system, name, kind))


def _item(system: System, name: str, kind: str) -> Fault | Variation:
    pool: Sequence[Fault | Variation] = system.faults if kind == "fault" else system.variations
    return next(item for item in pool if item.name == name)


def _kind(item: Fault | Variation) -> str:
    return "fault" if isinstance(item, Fault) else "variation"


@dataclass(frozen=True)
class Summary:
    """The score table's row of one system."""

    system: str
    faults: int
    detected: int
    site: int
    module: int
    classed: int
    top1: int
    top3: int
    line: int
    lined: int  # faults that say where their code is; all of them, for "some line is named", where none does
    variations: int
    false_alarms: int
    seconds: float


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """Count by system."""
    rows = []
    for system in dict.fromkeys(s.system for s in scores):
        faults = [s for s in scores if s.system == system and s.kind == "fault"]
        classed = [s for s in faults if s.classed]
        lined = [s for s in faults if s.lined] or faults
        variations = [s for s in scores if s.system == system and s.kind == "variation"]
        rows.append(
            Summary(
                system=system,
                faults=len(faults),
                detected=sum(s.detected for s in faults),
                site=sum(s.site for s in faults),
                module=sum(s.module for s in faults),
                classed=len(classed),
                top1=sum(s.top1 for s in classed),
                top3=sum(s.top3 for s in classed),
                line=sum(s.line for s in lined),
                lined=len(lined),
                variations=len(variations),
                false_alarms=sum(s.detected or s.verdict != "match" for s in variations),
                seconds=sum(s.seconds for s in scores if s.system == system),
            )
        )
    return rows


def gauntlet_command(
    names: list[str],
    only: str,
    jobs: int,
    as_json: Path | None,
    markdown: Path | None,
    paths: list[Path] | None,
    out: Console,
    err: Console,
    verbose: bool,
) -> int:
    """Serve `parity gauntlet`: status 0 when every fault is detected and no variation raises an alarm."""
    systems = find_systems(paths=paths)
    bar = Progress(console=err, transient=True, disable=not err.is_terminal)
    with bar:
        scores = run_gauntlet(systems, names, only, jobs, bar, paths)
    summaries = summarise(scores)
    out.print(_table(summaries))
    for score in scores:
        wrong = score.kind == "fault" and not (score.detected and score.site and (score.top1 or not score.classed))
        if verbose or wrong or (score.kind == "variation" and score.verdict != "match"):
            out.print(_line(score), markup=False)
    if as_json is not None:
        data = {
            "systems": [asdict(s) for s in summaries],
            "reliability": [asdict(r) for r in reliability(scores)],
            "calibration": fit(_listed(scores), least=20),
            "scores": [asdict(s) for s in scores],
        }
        write_text(as_json, json.dumps(data, indent=1) + "\n")
    if markdown is not None:
        write_text(markdown, to_markdown(summaries, scores))
    return 0 if all(s.detected == s.faults and s.false_alarms == 0 for s in summaries) else 1


EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Reliability:
    """Causes of about one confidence, first or not: how many, how sure they were on average, how many named the right class."""

    low: float
    high: float
    count: int
    stated: float
    right: float


def reliability(scores: Sequence[Score], edges: Sequence[float] = EDGES) -> list[Reliability]:
    """Compare stated confidences with how often the class was right, over all causes named for faults that expect one."""
    given = [(calibrated(score), right) for score, right in _listed(scores)]
    rows = []
    for low, high in pairwise(edges):
        inside = [(c, right) for c, right in given if low <= c < high or (c == high == edges[-1])]
        if inside:
            stated, right = sum(c for c, _ in inside), sum(right for _, right in inside)
            rows.append(Reliability(low, high, len(inside), stated / len(inside), right / len(inside)))
    return rows


def _listed(scores: Sequence[Score]) -> list[tuple[float, bool]]:
    return [told for s in scores if s.kind == "fault" and s.classed for told in s.listed]


def _table(rows: Sequence[Summary]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "system",
        "faults",
        "detected",
        "first site",
        "module",
        "top 1",
        "top 3",
        "source line",
        "variations",
        "false alarms",
        "seconds",
    ):
        table.add_column(name, justify="left" if name == "system" else "right")
    for r in rows:
        shares = [
            _share(r.detected, r.faults),
            _share(r.site, r.faults),
            _share(r.module, r.faults),
            _share(r.top1, r.classed),
            _share(r.top3, r.classed),
            _share(r.line, r.lined),
        ]
        table.add_row(r.system, str(r.faults), *shares, str(r.variations), str(r.false_alarms), f"{r.seconds:.0f}")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({100 * part / whole:.0f} %)" if whole else "-"


def _line(score: Score) -> str:
    if score.kind == "variation":
        return f"  variation {score.name}: {score.verdict} {score.found} ({score.seconds:.1f} s)"
    marks = "".join(
        m if ok else "."
        for m, ok in (
            ("D", score.detected),
            ("S", score.site),
            ("M", score.module),
            ("1", score.top1),
            ("3", score.top3),
            ("L", score.line),
        )
    )
    return f"  {marks} {score.name}: {score.verdict} {score.found} | {score.culprit} {score.source} | {'; '.join(score.causes)[:420]} | expected {score.expected} ({score.seconds:.1f} s)"


def to_markdown(summaries: Sequence[Summary], scores: Sequence[Score]) -> str:
    """Return the score table and one line a fault, as Markdown."""
    lines = [
        "# Gauntlet",
        "",
        "Made by `make gauntlet`. Faults are real bugs switched on in a port; variations are changes that a right port may make.",
        "",
    ]
    lines += [
        "| system | faults | detected | first site | module | cause top 1 | cause top 3 | source line | variations | false alarms | seconds |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    for r in summaries:
        cells = [
            r.system,
            r.faults,
            _share(r.detected, r.faults),
            _share(r.site, r.faults),
            _share(r.module, r.faults),
            _share(r.top1, r.classed),
        ]
        cells += [_share(r.top3, r.classed), _share(r.line, r.lined), r.variations, r.false_alarms, f"{r.seconds:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "## Confidence",
        "",
        "Of the causes with a confidence in each range, first in their list or not, how many named the right class.",
        "",
        "| confidence | causes | mean confidence | right |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r.low:g} to {r.high:g} | {r.count} | {r.stated:.2f} | {r.right:.2f} |" for r in reliability(scores)]
    for system in dict.fromkeys(s.system for s in scores):
        lines += [
            "",
            f"## {system}",
            "",
            "| fault | first divergence | top cause | site | cause |",
            "|---|---|---|---|---|",
        ]
        for s in scores:
            if s.system == system and s.kind == "fault":
                cause = (s.causes[0] if s.causes else "unexplained").replace("|", "\\|")
                good = "yes" if s.top1 else "top 3" if s.top3 else "-" if not s.classed else "no"
                lines.append(f"| {s.name} | `{s.found}` | {cause} | {'yes' if s.site else 'no'} | {good} |")
    return "\n".join(lines) + "\n"
