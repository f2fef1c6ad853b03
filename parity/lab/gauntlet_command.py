"""`parity gauntlet`: run, print, write."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from parity.case.discovery import find_systems
from parity.case.index import NOTHING
from parity.errors import CaseError
from parity.files import write_text
from parity.lab.gauntlet import Score, run_gauntlet
from parity.lab.gauntlet_table import COLUMNS, cells, reliability, summarise, write_page


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
    if markdown is not None and only != ".*":
        raise CaseError("--markdown needs all faults of a system, --only leaves some out: use one of the two")
    systems = find_systems(paths=paths, names=list(names))
    if not systems:
        raise CaseError(NOTHING)
    bar = Progress(console=err, transient=True, disable=not err.is_terminal)
    with bar:
        scores = run_gauntlet(systems, names, only, jobs, bar, paths)
    summaries = summarise(scores)
    out.print(_table(scores))
    for score in scores:
        wrong = score.kind == "fault" and not (score.detected and score.site and (score.top1 or not score.classed))
        if verbose or wrong or (score.kind == "variation" and score.verdict != "match"):
            out.print(line_of(score), markup=False)
    if as_json is not None:
        data = {
            "systems": [asdict(s) for s in summaries],
            "reliability": [asdict(r) for r in reliability(scores)],
            "scores": [asdict(s) for s in scores],
        }
        write_text(as_json, json.dumps(data, indent=1) + "\n")
    if markdown is not None:
        write_page(markdown, scores, whole=not names)
    return 0 if all(s.detected == s.faults and s.false_alarms == 0 for s in summaries) else 1


def _table(scores: list[Score]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in summarise(scores):
        table.add_row(*cells(row))
    return table


def line_of(score: Score) -> str:
    """Return one line on one fault or variation."""
    if score.kind == "variation":
        return f"  variation {score.name}: {score.verdict} {score.found} ({score.seconds:.1f} s)"
    told = (
        ("D", score.detected),
        ("S", score.site),
        ("M", score.module),
        ("1", score.top1),
        ("3", score.top3),
        ("L", score.line or not score.lined),
        ("V", score.verified),
    )
    marks = "".join(mark if ok else "." for mark, ok in told)
    causes = "; ".join(score.causes)[:420]
    where = f"{score.verdict} {score.found} | {score.culprit} {score.source}"
    return f"  {marks} {score.name}: {where} | {causes} | expected {score.expected} ({score.seconds:.1f} s)"
