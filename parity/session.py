"""Many cases in one go: run them with progress, write their reports, keep count of what did not run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from parity.case.jobs import Job
from parity.errors import SideError
from parity.report.history import add_history, read_history
from parity.result import Result
from parity.run.side import Runs

LONGEST = 110  # characters of a page's name
MUCH = 200_000_000  # bytes of saved traces that are worth a warning
_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a session gave."""

    results: list[Result] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """3 when a side failed to run, else 1 when a case is no match, else 0."""
        return 3 if self.errors else max((r.exit_status for r in self.results), default=0)


@dataclass(frozen=True)
class Options:
    """How jobs are run: as `parity run` takes it. html, save: folders for the reports and for the traces of both sides."""

    isolate: bool = True
    alone: bool = False
    zoom: str = ""
    html: Path | None = None
    save: Path | None = None
    pythons: Any = None  # parity.apart.Interpreters: each side in an environment of its own


@dataclass(frozen=True)
class Answer:
    """What one job gave: a result, or why a side failed to run."""

    result: Result | None = None
    error: str = ""


def run_jobs(
    jobs: Sequence[Job], options: Options = Options(), *, processes: int = 1, console: Console | None = None
) -> Outcome:
    """Run jobs, `processes` at a time; each report is written as soon as its case is done, results keep the order of the jobs."""
    progress = _progress(console)
    with progress or nullcontext():
        task = progress.add_task("", total=len(jobs)) if progress else None

        def say(text: str, step: int = 0) -> None:
            if progress is not None and task is not None:
                progress.update(task, description=text, advance=step)

        answers = _side_by_side(jobs, options, processes, say) if processes > 1 else _in_turn(jobs, options, say)
    outcome = Outcome()
    for job, answer in zip(jobs, answers, strict=True):
        if answer.result is not None:
            outcome.results.append(answer.result)
        else:
            outcome.errors.append(answer.error)
            outcome.not_run[job.case.label] = answer.error
    if options.html is not None:
        add_history(outcome.results, options.html)
        _write_index(outcome.results, options.html, outcome.not_run)
    return outcome


def processes_for(wanted: int, device: str) -> int:
    """Return how many jobs may run at a time: as wanted (0: one a core), one on an accelerator or where processes cannot fork."""
    if device != "cpu" or "fork" not in get_all_start_methods():
        return 1
    return wanted or os.cpu_count() or 1


def _in_turn(jobs: Sequence[Job], options: Options, say: Callable[..., None]) -> list[Answer]:
    answers = []
    for job in jobs:
        label = job.case.label

        def stage(text: str, label: str = label) -> None:
            say(f"{label}: {text}")

        answers.append(run_job(job, options, stage))
        say(label, 1)
    return answers


_FORKED: tuple[Sequence[Job], Options] | None = (
    None  # what a forked process inherits: cases hold functions, which no queue carries
)


def _side_by_side(jobs: Sequence[Job], options: Options, processes: int, say: Callable[..., None]) -> list[Answer]:
    global _FORKED
    _FORKED = (jobs, options)
    try:
        with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
            futures = [pool.submit(_forked, i) for i in range(len(jobs))]
            for future in as_completed(futures):
                say(jobs[futures.index(future)].case.label, 1)
            return [future.result() for future in futures]
    finally:
        _FORKED = None


def _forked(index: int) -> Answer:
    import torch

    torch.set_num_threads(1)
    assert _FORKED is not None
    jobs, options = _FORKED
    return run_job(jobs[index], options)


def run_job(job: Job, options: Options, say: Callable[[str], None] | None = None) -> Answer:
    """Run one job and write its report and traces."""
    from parity.alone import run_alone
    from parity.pipeline import run_case

    try:
        if options.pythons is not None:
            from parity.apart import run_apart

            apart = replace(run_apart(job, options.pythons, options.zoom), command=_command(job))
            return Answer(apart if options.html is None else write_one(apart, None, options.html))
        if options.alone:
            return Answer(run_alone(job.case, job.setting, fault=job.fault, variation=job.variation))
        result, runs = run_case(
            job.case,
            job.setting,
            fault=job.fault,
            variation=job.variation,
            isolate=options.isolate,
            progress=say,
            zoom=options.zoom or ("first" if options.html is not None else ""),  # a page shows the operations
        )
    except SideError as error:
        return Answer(error=str(error))
    result = replace(result, command=_command(job))
    if options.save is not None:
        _save(runs, options.save / job.case.label.replace("/", "-"))
    if options.html is not None:
        from parity.report.collect import collect_media

        result = write_one(result, collect_media(job.case, runs, result), options.html)
    return Answer(result)


def report_path(result: Result, folder: Path) -> Path:
    """Return where a result's report goes: a name made of ASCII letters, digits, '.', '_' and '-' alone, inside `folder`."""
    parts = [result.case or "comparison", result.fault or result.variation or ""]
    return folder / f"{'-'.join(page_stem(p) for p in parts if p)}.html"


def page_stem(name: str) -> str:
    """Return the file name of a page, less its ending: `/` becomes `-`.

    A name that loses more than that, or is cut, ends in a hash of the whole, so that no two share a page.
    """
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in name)
    plain = safe == name.replace("/", "-") and "-" not in name and safe.strip(".-") == safe
    if plain and len(safe) <= LONGEST and safe != "index":
        return safe
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe.strip('.-')[:LONGEST] or 'comparison'}-{digest}"


def write_one(result: Result, media: Any, folder: Path) -> Result:
    """Write the report of one result, and return the result with the page's path; its traces may be gone afterwards."""
    from parity.report.html import write_report

    result = replace(result, report=str(report_path(result, folder)))
    write_report(result, Path(str(result.report)), media)
    return result


def write_reports(results: Sequence[tuple[Result, Any]], folder: Path) -> Path:
    """Write reports and their index; return the index. Results of one name get pages of their own."""
    from parity.report.html import write_report

    listed: list[Result] = []
    taken: dict[Path, int] = {}
    for result, media in results:
        path = report_path(result, folder)
        taken[path] = count = taken.get(path, 0) + 1
        path = path if count == 1 else path.with_name(f"{path.stem}--{count}.html")
        listed.append(replace(result, report=str(path)))
        write_report(listed[-1], path, media)
    return _write_index(listed, folder, {})


def _write_index(results: Sequence[Result], folder: Path, not_run: dict[str, str]) -> Path:
    from parity.report.html import write_index

    path = folder / "index.html"
    write_index(results, path, not_run, read_history(folder))
    return path


def _progress(console: Console | None) -> Progress | None:
    if console is None or not console.is_terminal:
        return None
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _command(job: Job) -> str:
    extra = f" --fault {job.fault.name}" if job.fault else f" --variation {job.variation.name}" if job.variation else ""
    dtype = str(job.setting.dtype).removeprefix("torch.")
    return f"parity run {job.case.label}{extra} --dtype {dtype} --seed {job.setting.seed} --zoom first --html reports"


def _save(runs: Runs, folder: Path) -> None:
    from parity.trace.store import write_trace

    traces = {name: getattr(runs, name) for name in ("reference", "port", "precise", "isolated", "free")}
    size = sum(record.nbytes for trace in traces.values() if trace is not None for record in trace)
    if size > MUCH:
        _log.warning("parity: --save writes %.0f MB into %s", size / 1e6, folder)
    for name, trace in traces.items():
        if trace is not None:
            write_trace(trace, folder / name)
