"""The command line. The only place that prints.

Exit status of every command: 0 match, 1 divergence, 2 wrong usage or unreadable input, 3 a side failed to run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from parity.commands import apart, cases, measuring, traces, values
from parity.commands.options import ERR, OUT
from parity.console import silence, status_of

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a port compute what its reference computes, and if not, where does it first depart, how far, and why?",
    epilog="Exit status: 0 match, 1 divergence, 2 wrong usage or unreadable input, 3 a side failed to run.",
)
golden_app = typer.Typer(no_args_is_help=True, help="Golden files: tensors recorded from the authors' own code.")

COMMANDS: dict[str, Callable[..., int]] = {
    "list": cases.list_,
    "run": cases.run,
    "capture": traces.capture,
    "align": traces.align,
    "compare": traces.compare,
    "against": apart.against,
    "report": traces.report,
    "diagnose": values.diagnose,
    "nonfinite": values.nonfinite,
    "quant": values.quant,
    "video": values.video,
    "gauntlet": measuring.gauntlet,
    "mutants": measuring.mutants,
    "bench": measuring.bench,
    "doctor": measuring.doctor,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
golden_app.command("verify")(measuring.golden_verify)
app.add_typer(golden_app, name="golden")


def _version(wanted: bool) -> None:
    if wanted:
        from parity import __version__

        OUT.print(f"parity {__version__}", markup=False)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error was raised.")] = False,
) -> None:
    if traceback:
        os.environ["PARITY_DEBUG"] = "1"


def main() -> None:
    """Run the command line; turn every user error into one line and a status."""
    try:
        status = app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        ERR.print("parity: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        silence()
        sys.exit(0)
    except Exception as error:
        status, line = status_of(error)
        ERR.print(line, markup=False)
        if os.environ.get("PARITY_DEBUG"):
            raise
        sys.exit(status)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
