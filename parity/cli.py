"""The command line. The only place that prints.

Exit status of every command: 0 match, 1 divergence, 2 wrong usage or unreadable input, 3 a side failed to run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.boundary.patterns import Pattern
from parity.boundary.text import one_line
from parity.console import Terminal, check_outputs, open_streams, silence, status_of
from parity.errors import CaseError, ParityError, SideError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a port compute what its reference computes, and if not, where does it first depart, how far, and why?",
)
golden_app = typer.Typer(no_args_is_help=True, help="Golden files: tensors recorded from the authors' own code.")
app.add_typer(golden_app, name="golden")

open_streams()
_OUT = Terminal(width=None if sys.stdout.isatty() else 160)
_ERR = Terminal(stderr=True, soft_wrap=True)

CasesOption = Annotated[
    list[Path] | None, typer.Option("--cases", help="Cases folder(s) instead of [tool.parity] cases of pyproject.toml.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]


def main() -> None:
    """Run the command line; turn every user error into one line and a status."""
    try:
        status = app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        _ERR.print("parity: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        silence()
        sys.exit(0)
    except Exception as error:
        status, line = status_of(error)
        _ERR.print(line, markup=False)
        if os.environ.get("PARITY_DEBUG"):
            raise
        sys.exit(status)
    sys.exit(status if isinstance(status, int) else 0)


@app.command("list")
def list_(
    names: Annotated[list[str] | None, typer.Argument(metavar="SYSTEM...", help="Systems (default: all).")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="One kind alone: cases, faults, variations or goldens (may be repeated)."),
    ] = None,
    cases: CasesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> int:
    """List systems, their cases, faults and variations: parity list, parity list wan --only faults."""
    from parity.case.discovery import list_systems
    from parity.report.listing import KINDS, filter_listing, listing_lines

    unknown = [kind for kind in only or [] if kind not in KINDS]
    if unknown:
        raise CaseError(f"--only {unknown[0]}: there are {', '.join(KINDS)}")
    listing = filter_listing(list_systems(paths=cases), names or [], only or [])
    if as_json:
        print(json.dumps(listing, indent=1))
        return 0
    for line in listing_lines(listing):
        _OUT.print(line, markup=False, soft_wrap=True)
    return 0


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CASE...", help="system or system/case; everything when left out.")
    ] = None,
    fault: Annotated[str | None, typer.Option("--fault", help="Switch a fault of the port on.")] = None,
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
    html: Annotated[Path | None, typer.Option("--html", help="Folder for the HTML reports.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Folder for the traces of both sides.")] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, help="Cases at a time, each in a process of its own (0: one a core).")
    ] = 1,
    cases: CasesOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 3 where an exception was caught on the way.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> int:
    """Run both sides of cases and judge the port."""
    from parity.case.discovery import find_systems, refuse_unknown

    check_outputs([as_json, junit], [html, save], [weights])
    refuse_unknown(list(names or []), paths=cases)
    from parity.case.jobs import Wanted, choose_jobs
    from parity.session import Options, processes_for, run_jobs

    wanted = Wanted(list(names or []), fault, variation, dtype, device, seed, weights)
    chosen = choose_jobs(find_systems(paths=cases, names=wanted.names), wanted)
    outcome = run_jobs(
        chosen,
        Options(isolate, alone, zoom, html, save),
        processes=min(len(chosen), processes_for(jobs, device)),
        console=None if quiet else _ERR,
    )
    if not quiet:
        from parity.report.text import failure_message, summary_table

        _OUT.print(summary_table(outcome.results, outcome.not_run))
        for result in outcome.results:
            if result.verdict != "match":
                _OUT.print()
                _OUT.print(failure_message(result), markup=False, soft_wrap=True)
        if html is not None:
            _OUT.print(f"report: {html / 'index.html'}", markup=False, soft_wrap=True)
    _write_results(outcome.results, as_json)
    if junit is not None:
        from parity.report.junit import write_junit

        write_junit(outcome.results, junit, outcome.not_run)
    if strict:
        outcome.errors += [
            f"{r.case}: {line} (caught on the way; --strict)" for r in outcome.results for line in r.caught
        ]
    for line in outcome.errors:
        _ERR.print(f"parity: {line}", markup=False)
    return outcome.exit_status


@app.command()
def capture(
    target: Annotated[
        str, typer.Argument(help="A script.py, or package.module:callable that is called without arguments.")
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
    args: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.")] = None,
) -> int:
    """Record a trace of anything that runs torch."""
    from parity.capture.command import capture_command
    from parity.trace.writer import check_trace_target

    check_trace_target(out)
    count = capture_command(target, list(args or []), out, modules, model, full, names)
    _OUT.print(f"{count} records in {out}", markup=False, soft_wrap=True)
    return 0


@app.command()
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
        _OUT.print(line, markup=False, soft_wrap=True)
    alone = result.coverage.unaligned_reference, result.coverage.unaligned_port
    for side, sites in zip(("reference", "port"), alone, strict=True):
        _OUT.print(f"alone in the {side}: {', '.join(sites) or 'nothing'}", markup=False, soft_wrap=True)
    if write is not None:
        write_text(write, yaml.safe_dump(as_rules(result.alignment), sort_keys=False))
    return 0


@app.command()
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
    html: Annotated[Path | None, typer.Option("--html", help="Folder for the HTML report.")] = None,
) -> int:
    """Compare two traces, from any two machines."""
    from parity.api import compare as compare_traces
    from parity.report.text import failure_message, summary_table
    from parity.trace.names import load_names
    from parity.trace.store import load_trace

    check_outputs([as_json], [html], [reference, port, names])
    result = compare_traces(
        load_trace(reference),
        load_trace(port),
        names=load_names(names) if names else None,
        rtol=rtol,
        atol=atol,
        allow_unaligned=allow,
        by_value=by_value,
        label=f"{reference} vs {port}",
    )
    _OUT.print(summary_table([result]))
    if result.verdict != "match":
        _OUT.print(failure_message(result), markup=False, soft_wrap=True)
    _write_results([result], as_json)
    if html is not None:
        from parity.session import write_reports

        _OUT.print(f"report: {write_reports([(result, None)], html)}", markup=False, soft_wrap=True)
    return result.exit_status


@golden_app.command("verify")
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

    check_outputs([as_json], inputs=files)
    systems = find_systems(paths=cases)
    status, listing = 0, []
    for path in files:
        try:
            report = verify_golden(path, systems)
        except ParityError as error:
            text = str(error).removeprefix(f"{path}: ")
            _OUT.print(one_line(f"error  {path.name}: {text}"), markup=False, soft_wrap=True)
            status = max(status, 3 if isinstance(error, SideError) else 2)
            listing.append({"path": str(path), "ok": False, "error": str(error)})
            continue
        _OUT.print(_golden_line(report), markup=False, soft_wrap=True)
        if verbose or not report.ok:
            _print_golden_details(report)
        listing.append(_golden_json(report))
        status = max(status, 0 if report.ok else 1)
    if as_json:
        from parity.files import write_text

        write_text(as_json, json.dumps({"ok": status == 0, "files": listing}, indent=1) + "\n")
    return status


@app.command()
def diagnose(
    reference: Annotated[str, typer.Argument(help="Tensor file of the reference: FILE.safetensors[:KEY] or FILE.npy.")],
    port: Annotated[str, typer.Argument(help="Tensor file of the port.")],
    kind: Annotated[
        str, typer.Option("--kind", help="What it is: activation, rope, kv, mask, schedule, latent, frame, weight.")
    ] = "activation",
    as_json: JsonOption = None,
) -> int:
    """Test the hypotheses on two saved tensors."""
    from parity.api import diagnose_tensors, load_tensor

    check_outputs([as_json], inputs=[reference.partition(".safetensors:")[0], port.partition(".safetensors:")[0]])
    result = diagnose_tensors(load_tensor(reference), load_tensor(port), kind=kind)
    from parity.report.text import failure_message

    _OUT.print(
        "match: the tensors agree" if result.verdict == "match" else failure_message(result),
        markup=False,
        soft_wrap=True,
    )
    _write_results([result], as_json)
    return result.exit_status


@app.command()
def nonfinite(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:callable that returns (model, inputs), or system[/case][:port|:reference]."
        ),
    ],
    cases: CasesOption = None,
    as_json: JsonOption = None,
) -> int:
    """Find the first operation that makes a non-finite value from finite inputs."""
    from parity.locate.nonfinite import nonfinite_command

    check_outputs([as_json])
    found = nonfinite_command(target, cases)
    _OUT.print("match: every value is finite" if found is None else found.text, markup=False, soft_wrap=True)
    if as_json:
        from parity.files import write_text

        write_text(
            as_json, json.dumps(found.to_json() if found else {"verdict": "match", "first": None}, indent=1) + "\n"
        )
    return 0 if found is None else 1


@app.command()
def quant(
    target: Annotated[str, typer.Argument(help="package.module:callable that returns (model, inputs).")],
    limit: Annotated[float, typer.Option("--limit", help="Relative L2 error that the output may have.")] = 0.01,
    bits: Annotated[int, typer.Option("--bits", help="Bits of a weight.")] = 8,
    order: Annotated[str, typer.Option("--order", help="fp32: product in float32; after: scale behind it.")] = "fp32",
    top: Annotated[int, typer.Option("--top", help="Layers to print.")] = 20,
    as_json: JsonOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG file of the ranking.")] = None,
) -> int:
    """Quantise the weights of every Linear: cost of each layer, and which to leave out."""
    from parity.lab.quant import quant_command

    check_outputs([as_json, plot])
    return quant_command(target, limit, bits, order, top, as_json, plot, _OUT)


@app.command()
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
    return gauntlet_command(list(names or []), only, jobs, as_json, markdown, cases, _OUT, _ERR, verbose)


@app.command()
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
    return mutants_command(Draw(half, family, count, seed, jobs), as_json, markdown, verbose, _OUT, _ERR)


@app.command()
def video(
    reference: Annotated[Path, typer.Argument(help="Clip or frame folder of the reference.")],
    port: Annotated[Path, typer.Argument(help="Clip or frame folder of the port.")],
    as_json: JsonOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="HTML file of the report.")] = None,
) -> int:
    """Compare two clips: per-frame figures, blank, green, frozen, flickering frames, the first bad frame."""
    from parity.clips.compare import compare_clips
    from parity.clips.frames import load_clip

    check_outputs([as_json, html], inputs=[reference, port])
    left, right = load_clip(reference), load_clip(port)
    comparison = compare_clips(left, right)
    for line in comparison.lines():
        _OUT.print(line, markup=False, soft_wrap=True)
    if as_json:
        from parity.files import write_text

        write_text(as_json, json.dumps(comparison.to_json(), indent=1) + "\n")
    if html is not None:
        from parity.report.html import write_video_report

        write_video_report(comparison, left, right, html)
    return 0 if comparison.verdict == "match" else 1


@app.command()
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

        return bench_systems(names, repeats, as_json, cases, _OUT)
    from parity.lab.bench import bench_command

    return bench_command(device, repeats, as_json, _OUT)


@app.command()
def report(
    sources: Annotated[list[Path], typer.Argument(help="Result JSON files.")],
    html: Annotated[Path, typer.Option("--html", help="Folder for the reports.")] = Path("reports"),
) -> int:
    """Build the HTML again from saved results."""
    from parity.report.saved import read_results
    from parity.session import write_reports

    check_outputs(folders=[html], inputs=sources)
    _OUT.print(
        f"report: {write_reports([(r, None) for r in read_results(sources)], html)}", markup=False, soft_wrap=True
    )
    return 0


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> int:
    """Check the environment: versions, devices, determinism switches, codecs."""
    from parity.lab.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([f.__dict__ for f in findings], indent=1))
    else:
        for finding in findings:
            _OUT.print(f"{finding.mark:5} {finding.name}: {finding.text}", markup=False, soft_wrap=True)
    return 0 if all(f.mark != "FAIL" for f in findings) else 1


def _write_results(results: list[Any], path: Path | None) -> None:
    """One result is written as itself, several as a list under "results"."""
    if path is None:
        return
    if len(results) == 1:
        results[0].write_json(path)
        return
    from parity.files import write_text

    worst = next((r.verdict for r in results if r.verdict != "match"), "match")
    write_text(path, json.dumps({"verdict": worst, "results": [r.to_json() for r in results]}, indent=1) + "\n")


def _golden_line(report: Any) -> str:
    worst = report.worst
    mark = "ok    " if report.ok else "FAILED"
    text = f"{mark} {report.path.name}: {report.system}/{report.entry} ({report.side}), {len(report.checks)} values"
    if worst is not None:
        text += f", worst {one_line(worst.name, 80)}: max abs {worst.absolute:.2e}, rel {worst.relative:.2e}"
    if report.omitted:
        text += f", {len(report.omitted)} omitted with reason"
    if report.relations:
        wrong = [r.stage for r in report.relations if not r.ok]
        equal = [r.stage for r in report.relations if r.ok and r.found == "equal"]
        text += (
            f"; the sides relate as stated at {len(report.relations) - len(wrong)} of {len(report.relations)} stages"
        )
        text += (f", equal bits at {', '.join(equal)}" if equal else "") + (
            f", NOT at {', '.join(wrong)}" if wrong else ""
        )
    return text + (f", {len(report.missing)} NOT PRODUCED" if report.missing else "")


def _print_golden_details(report: Any) -> None:
    for name in report.missing[:20]:
        _OUT.print(f"       not produced: {one_line(name, 120)}", markup=False, soft_wrap=True)
    for check in [c for c in report.checks if not c.ok][:20]:
        _OUT.print(
            f"       {one_line(check.name, 120)}: max abs {check.absolute:.3e}, rel {check.relative:.3e} {check.detail}",
            markup=False,
        )
    for r in report.relations:
        mark = "as stated" if r.ok else "NOT AS STATED"
        _OUT.print(f"       {r.stage}: stated {r.stated}, found {r.found} ({mark})", markup=False, soft_wrap=True)
    for reason in dict.fromkeys(report.omitted.values()):
        count = sum(r == reason for r in report.omitted.values())
        _OUT.print(f"       omitted: {count} values ({reason})", markup=False, soft_wrap=True)


def _golden_json(report: Any) -> dict[str, Any]:
    from parity.result import _plain

    return _plain(  # type: ignore[no-any-return]
        {
            "path": str(report.path),
            "system": report.system,
            "entry": report.entry,
            "side": report.side,
            "ok": report.ok,
            "values": len(report.checks),
            "missing": list(report.missing),
            "omitted": dict(report.omitted),
            "failures": [c.__dict__ for c in report.checks if not c.ok],
            "worst": report.worst.__dict__ if report.worst else None,
            "relations": [r.__dict__ for r in report.relations],
        }
    )


if __name__ == "__main__":
    main()
