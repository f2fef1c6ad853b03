"""The command line. The only place that prints.

Exit status of every command: 0 match, 1 divergence, 2 wrong usage or unreadable input, 3 a side failed to run.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

import typer

from parity.commands import apart, cases, checking, measuring, scaffold, serving, traces, values
from parity.commands.common import TracebackOption, VersionOption, with_common
from parity.commands.examples import SHOWN, epilog
from parity.commands.options import ERR
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
    "check": checking.check,
    "explain": checking.explain,
    "init": scaffold.init,
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
    "mcp": serving.mcp,
}


def _add(home: typer.Typer, name: str, command: Callable[..., int]) -> None:
    home.command(name, epilog=epilog(name))(with_common(command, SHOWN[name].following))


for name, command in COMMANDS.items():
    _add(app, name, command)
_add(golden_app, "verify", measuring.golden_verify)
app.add_typer(golden_app, name="golden")


@app.callback()
def common(version: VersionOption = False, traceback: TracebackOption = False) -> None:
    """Take the options that may also stand before the command."""


@functools.cache
def _command() -> Callable[..., object]:
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; turn every user error into one line and a status."""
    os.environ.pop("PARITY_DEBUG", None)
    try:
        status = _command()(standalone_mode=False)
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
