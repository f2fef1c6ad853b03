"""What the command line prints with: nothing in a name acts on the terminal, a closed pipe changes no status, an error is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from parity.boundary.text import one_line, reason, visible
from parity.errors import ParityError, SideError
from parity.files import check_folder, check_target


class _Shown:
    """A renderable whose text is shown as it is: control characters become the escapes that name them."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Showing(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(r) for r in renderables]


class Terminal(Console):
    """A console that escapes what it is given, and goes on quietly when nobody reads any more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        self.push_render_hook(_Showing())

    def on_broken_pipe(self) -> None:
        """Print into nothing from here on: the status of the command still says what was found."""
        self.quiet = True
        silence()


def silence() -> None:
    """Let standard output go nowhere, so that closing it at the end raises nothing."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_streams() -> None:
    """Give standard streams that were closed by the caller somewhere to write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the process lives)


def status_of(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the one line of an error: a wrong use or an unreadable input is 2, a side that failed is 3."""
    if isinstance(error, ParityError):
        return 3 if isinstance(error, SideError) else 2, one_line(f"parity: {error}")
    if hasattr(error, "format_message"):  # click's usage errors
        return 2, one_line(f"parity: {error.format_message()} (see parity --help)")
    if isinstance(error, MemoryError):
        return 2, "parity: not enough memory for this input"
    text = one_line(f"parity: unexpected {type(error).__name__}: {reason(error)}", 240)
    return 2, f"{text} (PARITY_DEBUG=1 shows where)"


def check_outputs(
    files: Iterable[Path | None] = (), folders: Iterable[Path | None] = (), inputs: Iterable[Path | str | None] = ()
) -> None:
    """Check every output before the work begins: minutes of it are not lost to a wrong name, and no input is overwritten."""
    given = [Path(i) for i in inputs if i is not None]
    for file in files:
        check_target(file, given)
    for folder in folders:
        check_folder(folder, given)
