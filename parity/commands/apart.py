"""The command on a port whose reference was recorded elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import (
    BriefOption,
    CasesOption,
    HtmlOption,
    JsonOption,
    VerboseOption,
    print_results,
    write_results,
)
from parity.console import check_outputs
from parity.errors import CaseError


def against(
    reference: Annotated[Path, typer.Argument(help="Trace of the reference (parity capture --precise --operations).")],
    target: Annotated[str, typer.Argument(help="The port: a script.py, package.module:callable, or case:SYSTEM/NAME.")],
    model: Annotated[str, typer.Option("--model", help="Only modules of this class count as a root.")] = "",
    names: Annotated[Path | None, typer.Option("--map", help="Rules that win over what is inferred.")] = None,
    fault: Annotated[str | None, typer.Option("--fault", help="Of a case: switch a fault of the port on.")] = None,
    variation: Annotated[
        str | None, typer.Option("--variation", help="Of a case: a change that a right port may make.")
    ] = None,
    zoom: Annotated[
        str,
        typer.Option("--zoom", help='List the operations of both sides up to a site ("first": the first divergence).'),
    ] = "",
    as_json: JsonOption = None,
    html: HtmlOption = None,
    cases: CasesOption = None,
    brief: BriefOption = False,
    verbose: VerboseOption = False,
    args: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.")] = None,
) -> int:
    """Run a port against a recorded reference: isolation, culprit, operation, line and cause, although the reference is not there."""
    from parity.capture.command import CASE, gather_roots, program_of
    from parity.stand_in import calls_against, case_against

    check_outputs([as_json], [html], [reference, names])
    if target.startswith(CASE):
        from parity.case.discovery import find_systems
        from parity.case.jobs import Wanted, choose_jobs

        wanted = Wanted([target.removeprefix(CASE)], fault, variation)
        jobs = choose_jobs(find_systems(paths=cases, names=wanted.names), wanted)
        if len(jobs) != 1:
            raise CaseError(f"{target} names {len(jobs)} cases: give one, as in {CASE}{jobs[0].case.label}")
        result, _ = case_against(reference, jobs[0].case, fault=jobs[0].fault, variation=jobs[0].variation, zoom=zoom)
    else:
        if fault or variation:
            raise CaseError(
                "--fault and --variation belong to a case, as in: parity against TRACE case:SYSTEM/NAME --fault NAME"
            )
        found = gather_roots(target, program_of(target, list(args or [])), model)
        result = calls_against(reference, found, names=names, label=f"{reference} vs {target}", zoom=zoom)
    write_results([result], as_json)
    page = None
    if html is not None:
        from parity.session import write_one, write_reports

        result = write_one(result, None, html)
        page = write_reports([(result, None)], html)
    print_results([result], brief=brief, verbose=verbose, saved=as_json, page=page)
    return result.exit_status
