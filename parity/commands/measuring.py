"""Commands that measure the harness, an implementation or this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from parity.boundary.patterns import Pattern
from parity.boundary.text import one_line
from parity.commands.options import ERR, OUT, CasesOption, JsonOption, write_json
from parity.console import check_outputs
from parity.errors import ParityError, SideError


def gauntlet(
    names: Annotated[list[str] | None, typer.Argument(metavar="SYSTEM...", help="Systems (default: all).")] = None,
    only: Annotated[str, typer.Option("--only", help="Regular expression for fault and variation names.")] = ".*",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes.")] = 1,
    as_json: JsonOption = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Page whose sections of score tables are replaced.")
    ] = None,
    cases: CasesOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line a fault.")] = False,
) -> int:
    """Run every fault and every variation; print the score table."""
    from parity.lab.gauntlet_command import gauntlet_command

    check_outputs([as_json, markdown])
    Pattern(only, "--only")
    return gauntlet_command(list(names or []), only, jobs, as_json, markdown, cases, OUT, ERR, verbose)


def mutants(
    half: Annotated[
        str, typer.Option("--half", help="Families to try: tuning, held (never tuned on), or both when left out.")
    ] = "",
    family: Annotated[str, typer.Option("--family", help="One family of models.")] = "",
    count: Annotated[int, typer.Option("--n", min=1, help="Mutants in all, spread over the families.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Which edits are drawn.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes.")] = 1,
    as_json: JsonOption = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Page whose section of score tables is replaced.")
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option("--fit", help="Run nothing: fit confidences on a JSON of the tuning half, print the table."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line a mutant.")] = False,
) -> int:
    """Edit the source of other people's models, one small bug at a time; print what is found, placed, named and proven."""
    from parity.lab.mutation.command import Draw, mutants_command

    check_outputs([as_json, markdown], inputs=[fit])
    if fit is not None:
        from parity.lab.mutation.fit import as_source, fitted

        print(as_source(fitted(fit)))
        return 0
    return mutants_command(Draw(half, family, count, seed, jobs), as_json, markdown, verbose, OUT, ERR)


def golden_verify(
    files: Annotated[list[Path], typer.Argument(help="Golden .safetensors files.")],
    cases: CasesOption = None,
    as_json: JsonOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list what was omitted and every failing value.")
    ] = False,
) -> int:
    """Build the implementation from each golden's config, load its weights strictly, run, compare everything the file holds."""
    from parity.case.discovery import find_systems
    from parity.lab.golden import verify_golden
    from parity.lab.golden_report import golden_details, golden_json, golden_line

    check_outputs([as_json], inputs=files)
    systems = find_systems(paths=cases)
    status, listing = 0, []
    for path in files:
        try:
            report = verify_golden(path, systems)
        except ParityError as error:
            text = str(error).removeprefix(f"{path}: ")
            OUT.print(one_line(f"error  {path.name}: {text}"), markup=False, soft_wrap=True)
            status = max(status, 3 if isinstance(error, SideError) else 2)
            listing.append({"path": str(path), "ok": False, "error": str(error)})
            continue
        OUT.print(golden_line(report), markup=False, soft_wrap=True)
        if verbose or not report.ok:
            for line in golden_details(report):
                OUT.print(f"       {line}", markup=False, soft_wrap=True)
        listing.append(golden_json(report))
        status = max(status, 0 if report.ok else 1)
    write_json({"ok": status == 0, "files": listing}, as_json)
    return status


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SYSTEM]...", help="Time a system's port against its reference.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", help="Interleaved repetitions; the median counts.")] = 5,
    as_json: JsonOption = None,
    cases: CasesOption = None,
) -> int:
    """Measure the cost of capturing and comparing on this machine, against the plain run; or a system's port against its reference."""
    check_outputs([as_json])
    if names:
        from parity.lab.bench_system import bench_systems

        return bench_systems(names, repeats, as_json, cases, OUT)
    from parity.lab.bench import bench_command

    return bench_command(device, repeats, as_json, OUT)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> int:
    """Check the environment: versions, devices, determinism switches, codecs."""
    from parity.lab.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([f.__dict__ for f in findings], indent=1))
    else:
        for finding in findings:
            OUT.print(f"{finding.mark:5} {finding.name}: {finding.text}", markup=False, soft_wrap=True)
    return 0 if all(f.mark != "FAIL" for f in findings) else 1
