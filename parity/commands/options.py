"""What the commands share: the terminals, options that mean the same everywhere, results as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.console import Terminal, open_streams
from parity.result import Result

open_streams()
OUT = Terminal(width=None if sys.stdout.isatty() else 160)
ERR = Terminal(stderr=True, soft_wrap=True)

CasesOption = Annotated[
    list[Path] | None, typer.Option("--cases", help="Cases folder(s) instead of [tool.parity] cases of pyproject.toml.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]

HtmlOption = Annotated[Path | None, typer.Option("--html", help="Folder for the HTML pages.")]
BriefOption = Annotated[
    bool, typer.Option("--brief", help="Answer in at most 40 lines and 2 000 characters, the next command last.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print all notes, the seconds of each stage, the environments.")
]


def complete_case(incomplete: str) -> list[str]:
    """Complete a system or a case, from the names that were kept from last time."""
    listing = _kept_names()
    known = [*listing, *(case["name"] for system in listing.values() for case in system["cases"])]
    return [name for name in known if name.startswith(incomplete)]


def complete_fault(incomplete: str) -> list[str]:
    """Complete the name of a fault of any system."""
    faults = [fault["name"] for system in _kept_names().values() for fault in system["faults"]]
    return [name for name in faults if name.startswith(incomplete)]


def _kept_names() -> dict[str, dict[str, Any]]:
    from parity.case.discovery import case_files
    from parity.case.index import kept_listing
    from parity.errors import ParityError

    try:
        return kept_listing(*case_files()) or {}
    except ParityError:  # a shell that asks for a completion wants no message
        return {}


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal that work goes on, and since when."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        bar.add_task(text, total=None)
        yield


def print_results(
    results: Sequence[Result],
    not_run: Mapping[str, str] | None = None,
    *,
    brief: bool = False,
    verbose: bool = False,
    saved: Path | None = None,
    page: Path | None = None,
) -> None:
    """Print the table, the message of each result that is no match, and where the pages are; or all of it in brief."""
    if brief:
        from parity.report.brief import brief_results

        OUT.print(brief_results(results, not_run, str(saved or "")), markup=False, soft_wrap=True)
        return
    from parity.report.text import details, failure_message, summary_table

    OUT.print(summary_table(results, not_run))
    for result in results:
        if result.verdict != "match":
            OUT.print()
            OUT.print(failure_message(result), markup=False, soft_wrap=True)
        if verbose:
            OUT.print("\n".join(details(result)), markup=False, soft_wrap=True)
    if page is not None:
        OUT.print(f"report: {page}", markup=False, soft_wrap=True)


def write_results(results: list[Result], path: Path | None) -> None:
    """One result is written as itself, several as a list under "results"."""
    if path is None:
        return
    if len(results) == 1:
        results[0].write_json(path)
        return
    from parity.files import write_text

    worst = next((r.verdict for r in results if r.verdict != "match"), "match")
    write_text(path, json.dumps({"verdict": worst, "results": [r.to_json() for r in results]}, indent=1) + "\n")


def write_json(value: Any, path: Path | None) -> None:
    """Write plain values as JSON, atomically, where a path was given."""
    if path is not None:
        from parity.files import write_text

        write_text(path, json.dumps(value, indent=1) + "\n")
