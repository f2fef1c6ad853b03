"""What the commands share: the terminals, options that mean the same everywhere, results as JSON."""

from __future__ import annotations

import json
import sys
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
