"""Commands on cases: what there is, and running it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parity.commands.options import (
    ERR,
    OUT,
    BriefOption,
    CasesOption,
    HtmlOption,
    JsonOption,
    VerboseOption,
    complete_case,
    complete_fault,
    print_results,
    write_results,
)
from parity.console import check_outputs
from parity.errors import CaseError

if TYPE_CHECKING:
    from parity.apart import Interpreters


def list_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SYSTEM...", help="Systems (default: all).", autocompletion=complete_case),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="One kind alone: cases, faults, variations or goldens (may be repeated)."),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="The same as --only faults.")] = False,
    cases: CasesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    brief: BriefOption = False,
) -> int:
    """List systems, their cases, faults and variations."""
    from parity.case.discovery import list_systems
    from parity.report.listing import KINDS, filter_listing, listing_lines

    kinds = [*(only or []), *(["faults"] if faults else [])]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise CaseError(f"--only {unknown[0]}: there are {', '.join(KINDS)}")
    listing = filter_listing(list_systems(paths=cases), names or [], kinds)
    if as_json:
        print(json.dumps(listing, indent=1))
        return 0
    if brief:
        from parity.report.brief import fitted
        from parity.report.listing import brief_listing

        following = f"parity run {next(iter(listing), 'SYSTEM')} --brief" if listing else "parity init"
        OUT.print(fitted(brief_listing(listing), following), markup=False, soft_wrap=True)
        return 0
    for line in listing_lines(listing):
        OUT.print(line, markup=False, soft_wrap=True)
    return 0


def _interpreters(reference: Path | None, port: Path | None, cases: list[Path] | None) -> Interpreters | None:
    """Return the interpreters of both sides where one was named: this one runs the other side."""
    from parity.apart import Interpreters

    here = Path(sys.executable)
    return Interpreters(reference or here, port or here, cases or ()) if reference or port else None


def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE...", help="system or system/case; everything when left out.", autocompletion=complete_case
        ),
    ] = None,
    fault: Annotated[
        str | None, typer.Option("--fault", help="Switch a fault of the port on.", autocompletion=complete_fault)
    ] = None,
    variation: Annotated[
        str | None, typer.Option("--variation", help="Apply a change that a right port may make.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Deployed dtype: fp32, bf16, fp16 (default: the case's).")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights and latents.")] = 0,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate/--no-isolate", help="Also compare every site alone, in float64 on the reference's values."
        ),
    ] = True,
    alone: Annotated[
        bool, typer.Option("--alone", help="Run the port without a reference and judge the case's invariants.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Run on a real checkpoint instead of tiny random weights.")
    ] = None,
    zoom: Annotated[
        str,
        typer.Option("--zoom", help='List the operations of both sides up to a site ("first": the first divergence).'),
    ] = "",
    as_json: JsonOption = None,
    html: HtmlOption = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Folder for the traces of both sides.")] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, help="Cases at a time, each in a process of its own (0: one a core).")
    ] = 1,
    reference_python: Annotated[
        Path | None, typer.Option("--reference-python", help="Interpreter of the reference's environment.")
    ] = None,
    port_python: Annotated[
        Path | None, typer.Option("--port-python", help="Interpreter of the port's environment.")
    ] = None,
    cases: CasesOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 3 where an exception was caught on the way.")
    ] = False,
    brief: BriefOption = False,
    verbose: VerboseOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> int:
    """Run both sides of cases and judge the port."""
    from parity.case.discovery import find_systems, refuse_unknown

    check_outputs([as_json, junit], [html, save], [weights])
    refuse_unknown(list(names or []), paths=cases, fault=fault, variation=variation)
    from parity.case.jobs import Wanted, choose_jobs
    from parity.session import Options, processes_for, run_jobs

    wanted = Wanted(list(names or []), fault, variation, dtype, device, seed, weights)
    chosen = choose_jobs(find_systems(paths=cases, names=wanted.names), wanted)
    outcome = run_jobs(
        chosen,
        Options(isolate, alone, zoom, html, save, _interpreters(reference_python, port_python, cases)),
        processes=min(len(chosen), processes_for(jobs, device)),
        console=None if quiet else ERR,
    )
    if not quiet:
        page = html / "index.html" if html is not None else None
        told = outcome.results if zoom else [replace(r, operations=()) for r in outcome.results]
        print_results(told, outcome.not_run, brief=brief, verbose=verbose, saved=as_json, page=page)
    write_results(outcome.results, as_json)
    if junit is not None:
        from parity.report.junit import write_junit

        write_junit(outcome.results, junit, outcome.not_run)
    if strict:
        outcome.errors += [
            f"{r.case}: {line} (caught on the way; --strict)" for r in outcome.results for line in r.caught
        ]
    for line in outcome.errors:
        ERR.print(f"parity: {line}", markup=False)
    return outcome.exit_status
