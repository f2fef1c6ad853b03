"""Commands on traces: record, align, compare; pages from saved results."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import (
    OUT,
    BriefOption,
    CasesOption,
    HtmlOption,
    JsonOption,
    VerboseOption,
    print_results,
    write_results,
)
from parity.console import check_outputs


def capture(
    target: Annotated[
        str,
        typer.Argument(
            help="A script.py, package.module:callable that is called without arguments, or case:SYSTEM/NAME for its reference."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trace.")] = Path("trace"),
    modules: Annotated[
        str, typer.Option("--modules", help="Regular expression for the module paths to record.")
    ] = ".*",
    model: Annotated[
        str,
        typer.Option("--model", help="Only modules of this class count as a root (default: the first module called)."),
    ] = "",
    full: Annotated[
        bool, typer.Option("--full/--sketch", help="Keep full tensors (default: statistics, hash and sketch).")
    ] = False,
    names: Annotated[Path | None, typer.Option("--map", help="Name map applied while recording.")] = None,
    floors: Annotated[
        bool,
        typer.Option("--floors", help="Also make the calls again in float64: store what the side itself is off by."),
    ] = False,
    noise: Annotated[
        list[str] | None,
        typer.Option("--noise", metavar="REGEX=ERROR", help="Declare what sites may be off by (may be repeated)."),
    ] = None,
    precise: Annotated[
        str, typer.Option("--precise", metavar="REGEX", help="Keep the values of these modules in float64, too.")
    ] = "",
    operations: Annotated[
        str,
        typer.Option("--operations", metavar="REGEX", help="Keep the operations of these modules with their lines."),
    ] = "",
    dtype: Annotated[str | None, typer.Option("--dtype", help="Deployed dtype of a case: fp32, bf16, fp16.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of a case.")] = 0,
    cases: CasesOption = None,
    args: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.")] = None,
) -> int:
    """Record a trace of anything that runs torch."""
    from parity.capture.command import capture_command, noise_of
    from parity.trace.writer import check_trace_target

    check_trace_target(out)
    declared = noise_of(noise or [])
    wanted = (modules, model, full, names, floors, declared, precise, operations, dtype, seed, cases)
    count = capture_command(target, list(args or []), out, *wanted)
    OUT.print(f"{count} records in {out}", markup=False, soft_wrap=True)
    return 0


def align(
    reference: Annotated[Path, typer.Argument(help="Trace of the reference: a folder or a .safetensors file.")],
    port: Annotated[Path, typer.Argument(help="Trace of the port.")],
    names: Annotated[Path | None, typer.Option("--map", help="Rules that win over what is inferred.")] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write a name map to start from (YAML).")] = None,
) -> int:
    """List which value of the port is taken for which of the reference, with the evidence."""
    import yaml

    from parity.align.listed import as_rules, lines
    from parity.api import compare as compare_traces
    from parity.files import write_text
    from parity.trace.names import load_names
    from parity.trace.store import load_trace

    check_outputs([write], inputs=[reference, port, names])
    result = compare_traces(load_trace(reference), load_trace(port), names=load_names(names) if names else None)
    for line in lines(result.alignment):
        OUT.print(line, markup=False, soft_wrap=True)
    alone = result.coverage.unaligned_reference, result.coverage.unaligned_port
    for side, sites in zip(("reference", "port"), alone, strict=True):
        OUT.print(f"alone in the {side}: {', '.join(sites) or 'nothing'}", markup=False, soft_wrap=True)
    if write is not None:
        write_text(write, yaml.safe_dump(as_rules(result.alignment), sort_keys=False))
    return 0


def compare(
    reference: Annotated[Path, typer.Argument(help="Trace of the reference: a folder or a .safetensors file.")],
    port: Annotated[Path, typer.Argument(help="Trace of the port.")],
    names: Annotated[
        Path | None,
        typer.Option("--map", help="YAML name map: rules {port: REGEX, reference: TEMPLATE, layout: PATTERN}."),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option("--rtol", help="Relative L2 tolerance for every record (default: by dtype).")
    ] = None,
    atol: Annotated[
        float, typer.Option("--atol", help="Largest absolute difference that is never a divergence.")
    ] = 0.0,
    allow: Annotated[
        float | None,
        typer.Option(
            "--allow-unaligned",
            help="Share of reference sites that may stay without a partner (default: under a half).",
        ),
    ] = None,
    by_value: Annotated[bool, typer.Option("--by-value/--by-name", help="Match what names do not by values.")] = True,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    brief: BriefOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Compare two traces, from any two machines."""
    from parity.api import compare as compare_traces
    from parity.trace.names import load_names
    from parity.trace.store import load_trace

    check_outputs([as_json], [html], [reference, port, names])
    start = time.perf_counter()
    traces = load_trace(reference), load_trace(port)
    read = time.perf_counter()
    result = compare_traces(
        *traces,
        names=load_names(names) if names else None,
        rtol=rtol,
        atol=atol,
        allow_unaligned=allow,
        by_value=by_value,
        label=f"{reference} vs {port}",
    )
    seconds = {"read": read - start, "compare": time.perf_counter() - read}
    result = replace(result, seconds=seconds, command=f"parity align {shlex.join([str(reference), str(port)])}")
    write_results([result], as_json)
    page = None
    if html is not None:
        from parity.report.media import Media
        from parity.report.values import value_views
        from parity.session import write_one, write_reports

        media = Media(values=value_views(result.rows, result.divergences, *traces))
        result = write_one(result, media, html)
        page = write_reports([(result, media)], html)
    print_results([result], brief=brief, verbose=verbose, saved=as_json, page=page)
    return result.exit_status


def report(
    sources: Annotated[list[Path], typer.Argument(help="Result JSON files.")],
    html: Annotated[Path, typer.Option("--html", help="Folder for the reports.")] = Path("reports"),
) -> int:
    """Build the HTML again from saved results. The status is that of the result; of several, 0 once their pages are written."""
    from parity.report.saved import read_results
    from parity.session import write_reports

    check_outputs(folders=[html], inputs=sources)
    results = read_results(sources)
    OUT.print(f"report: {write_reports([(r, None) for r in results], html)}", markup=False, soft_wrap=True)
    return results[0].exit_status if len(results) == 1 else 0
