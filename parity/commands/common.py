"""What every command takes, wherever it stands: --brief, --quiet, --traceback, --version."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from parity.commands.options import OUT, BriefOption


def print_version(wanted: bool) -> None:
    """Print the version and end the command."""
    if wanted:
        from parity import __version__

        OUT.print(f"parity {__version__}", markup=False)
        raise typer.Exit


def show_traceback(wanted: bool) -> None:
    """Let the command line raise what it turns into one line otherwise."""
    if wanted:
        os.environ["PARITY_DEBUG"] = "1"


VersionOption = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
]
TracebackOption = Annotated[
    bool, typer.Option("--traceback", callback=show_traceback, help="Show where an unexpected error was raised.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing: the exit status says it.")]
_COMMON: Mapping[str, Any] = {
    "brief": BriefOption,
    "quiet": QuietOption,
    "traceback": TracebackOption,
    "version": VersionOption,
}


def with_common(command: Callable[..., int], following: str) -> Callable[..., int]:
    """Return a command that also takes the common options; those that it declares itself reach it.

    following: the command that is named last in a brief answer, a template of the command's own arguments.
    """
    own = inspect.signature(command, eval_str=True).parameters
    added = {name: kind for name, kind in _COMMON.items() if name not in own}

    @functools.wraps(command)
    def run(**given: Any) -> int:
        kept = {name: value for name, value in given.items() if name not in added}
        if "quiet" in added and given["quiet"]:
            with OUT.capture():
                return command(**kept)
        if "brief" not in added or not given["brief"]:
            return command(**kept)
        from parity.report.brief import fitted

        with OUT.capture() as said:
            status = command(**kept)
        OUT.print(fitted(said.get().splitlines(), following.format(**kept)), markup=False, soft_wrap=True)
        return status

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own.values()]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in added.items()
    ]
    run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
