"""`python -m parity.capture SCRIPT.py -o trace`: the command where torch, numpy and safetensors are all there is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from parity.capture.command import capture_command, noise_of
from parity.errors import ParityError, SideError


def main(argv: list[str] | None = None) -> int:
    """Record a trace; return the exit status: 0, 2 for wrong usage, 3 when the script fails."""
    parser = argparse.ArgumentParser(
        "python -m parity.capture", description="Record a trace of anything that runs torch."
    )
    parser.add_argument("target", help="a script.py, package.module:callable, or case:SYSTEM/NAME")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    parser.add_argument("-o", "--out", type=Path, default=Path("trace"), help="folder of the trace")
    parser.add_argument("--modules", default=".*", help="regular expression for the module paths to record")
    parser.add_argument("--model", default="", help="only modules of this class count as a root")
    parser.add_argument("--full", action="store_true", help="keep full tensors")
    parser.add_argument("--floors", action="store_true", help="make the calls again in float64 and store floors")
    parser.add_argument("--noise", action="append", default=[], metavar="REGEX=ERROR", help="declared noise of sites")
    parser.add_argument("--precise", default="", metavar="REGEX", help="keep values in float64 of these modules")
    parser.add_argument("--operations", default="", metavar="REGEX", help="keep the operations of these modules")
    parser.add_argument("--dtype", help="deployed dtype of a case")
    parser.add_argument("--seed", type=int, default=0, help="seed of a case")
    parser.add_argument("--cases", action="append", type=Path, help="folder of cases")
    given = parser.parse_args(argv)
    try:
        count = capture_command(
            given.target,
            given.args,
            given.out,
            given.modules,
            given.model,
            given.full,
            None,
            given.floors,
            noise_of(given.noise),
            given.precise,
            given.operations,
            given.dtype,
            given.seed,
            given.cases,
        )
    except ParityError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 3 if isinstance(error, SideError) else 2
    print(f"{count} records in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
