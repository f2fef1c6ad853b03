"""`parity mutants`: the harness on bugs that nobody chose, in models that it may or may not have been tuned on."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from parity.files import write_text
from parity.lab.mutation.families import families
from parity.lab.mutation.score import FamilyOutcome, Outcome, aside, judge_family
from parity.lab.mutation.table import COLUMNS, frame, grouped, markdown
from parity.lab.pages import write_sections


@dataclass(frozen=True)
class Draw:
    """Which mutants: of which families, how many in all, drawn by which seed; in how many processes."""

    half: str = ""
    family: str = ""
    count: int = 100
    seed: int = 0
    jobs: int = 1


def mutants_command(
    draw: Draw, as_json: Path | None, as_markdown: Path | None, verbose: bool, out: Console, err: Console
) -> int:
    """Serve `parity mutants`: status 0 when every mutant is detected and every right twin matches."""
    chosen, seed = families(draw.half, draw.family), draw.seed
    each = math.ceil(draw.count / len(chosen))
    found: list[FamilyOutcome] = []
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("mutants", total=len(chosen))
        for done in _judged([f.name for f in chosen], each, seed, draw.jobs):
            found.append(done)
            bar.update(task, advance=1, description=done.family)
            _write_json(found, seed, as_json)  # as far as it goes: a run that is cut off leaves what it found
            if verbose:
                for outcome in done.outcomes:
                    out.print(line_of(outcome), markup=False, soft_wrap=True)
    found.sort(key=lambda f: (f.half, f.family))
    _write_json(found, seed, as_json)
    if any(f.outcomes for f in found):
        out.print(_table(found))
        if as_markdown is not None:
            write_sections(as_markdown, {"mutants": markdown(found, seed, revision())}, "Mutants")
    _print_aside(found, out)
    seen = all(o.detected for f in found for o in f.outcomes)
    return 0 if seen and all(v == "match" for f in found for v in f.clean) else 1


def _judged(names: Sequence[str], each: int, seed: int, jobs: int) -> Iterable[FamilyOutcome]:
    if jobs <= 1:
        for name in names:
            yield _judge_named(name, each, seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=4) as pool:
        for future in as_completed([pool.submit(_judge_named, name, each, seed) for name in names]):
            yield future.result()


def _judge_named(name: str, each: int, seed: int) -> FamilyOutcome:
    return judge_family(families(name=name)[0], each, seed)


def line_of(outcome: Outcome) -> str:
    """Return one line on one mutant."""
    flags = (("D", outcome.detected), ("M", outcome.module), ("L", outcome.line), ("1", outcome.top1), ("3", outcome.top3), ("V", outcome.verified))  # fmt: skip
    marks = "".join(mark if ok else "." for mark, ok in flags)
    first = outcome.causes[0] if outcome.causes else None
    cause = f"{first.class_id} {first.confidence:.2f} {first.proof} {first.text}" if first else "unexplained"
    where = f"{outcome.culprit} {outcome.source}"
    return f"{marks} {outcome.family} {outcome.name} | {outcome.verdict} {where} | {cause} | expected {'/'.join(outcome.classes)} in {', '.join(outcome.modules[:2]) or 'the model'} ({outcome.seconds:.1f} s)"


def _table(found: Sequence[FamilyOutcome]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", *COLUMNS):
        table.add_column(name, justify="right" if name else "left")
    rows = frame(found)
    for by in ("half", "shape", "kind"):
        for cells in grouped(rows, by):
            table.add_row(*cells)
        table.add_section()
    return table


def _print_aside(found: Sequence[FamilyOutcome], out: Console) -> None:
    left = ", ".join(f"{n} {why}" for why, n in sorted(aside(tuple(found)).items())) or "none"
    out.print(f"set aside: {left}", markup=False)
    wrong = [f"{f.family}: {verdict}" for f in found for verdict in f.clean if verdict != "match"]
    out.print("right twins: all match" if not wrong else f"right twins: {'; '.join(wrong)}", markup=False)


def revision() -> str:
    """Return the short revision of the checkout that is run, with a plus when something is changed; empty outside of one."""
    folder = Path(__file__).parent
    asked = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no", "."]]
    try:
        head, changed = (
            subprocess.run(a, cwd=folder, capture_output=True, text=True, check=True).stdout.strip() for a in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+" if changed else head


def _write_json(found: Sequence[FamilyOutcome], seed: int, path: Path | None) -> None:
    if path is not None:
        write_text(path, json.dumps({"seed": seed, "families": [asdict(f) for f in found]}, indent=1) + "\n")
