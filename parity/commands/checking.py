"""Commands on two models by their names, and on a saved result: check, explain."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.options import (
    OUT,
    BriefOption,
    HtmlOption,
    JsonOption,
    VerboseOption,
    print_results,
    write_results,
)
from parity.console import check_outputs

InputsOption = Annotated[
    str,
    typer.Option(
        "--inputs", help="package.module:callable that returns a tuple or dict of arguments (else both return them)."
    ),
]


def check(
    reference: Annotated[str, typer.Argument(help="package.module:callable that returns the reference.")],
    port: Annotated[str, typer.Argument(help="package.module:callable that returns the port.")],
    inputs: InputsOption = "",
    names: Annotated[Path | None, typer.Option("--map", help="Name map that wins over what is inferred.")] = None,
    zoom: Annotated[
        str, typer.Option("--zoom", help='List the operations up to a site ("first": the first divergence).')
    ] = "",
    isolate: Annotated[bool, typer.Option("--isolate/--no-isolate", help="Also compare every site alone.")] = True,
    backward: Annotated[bool, typer.Option("--backward", help="Also compare the gradients.")] = False,
    as_json: JsonOption = None,
    html: HtmlOption = None,
    brief: BriefOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Run two models on the same inputs and judge the port, without a case."""
    from parity.api import check as check_models

    check_outputs([as_json], [html], [names])
    ours, theirs, given = models_of(reference, port, inputs)
    label = f"{reference} vs {port}"
    result = check_models(ours, theirs, given, names=names, zoom=zoom, isolate=isolate, backward=backward, label=label)
    words = ["parity", "check", reference, port, *(["--inputs", inputs] if inputs else [])]
    words += ["--map", str(names)] if names is not None else []
    result = replace(result, command=f"{shlex.join(words)} --zoom first" if result.first else shlex.join(words))
    page = None
    if html is not None:
        from parity.session import write_one, write_reports

        result = write_one(result, None, html)
        page = write_reports([(result, None)], html)
    write_results([result], as_json)
    print_results([result], brief=brief, verbose=verbose, saved=as_json, page=page)
    return result.exit_status


def explain(
    source: Annotated[Path, typer.Argument(help="Result JSON file, as --json writes it.", metavar="RESULT")],
    brief: BriefOption = False,
) -> int:
    """Say every cause of a saved result with its evidence: what is proven, what was only found to fit."""
    from parity.report.brief import brief_causes
    from parity.report.saved import read_results
    from parity.report.text import causes_text

    results = read_results([source])
    if brief:
        chosen = next((r for r in results if r.verdict != "match"), results[0])
        OUT.print(brief_causes(chosen), markup=False, soft_wrap=True)
    else:
        OUT.print("\n\n".join(causes_text(r) for r in results), markup=False, soft_wrap=True)
    return max(result.exit_status for result in results)


def models_of(reference: str, port: str, inputs: str) -> tuple[Any, Any, Any]:
    """Return both models and their inputs, from the callables that are named.

    Raises CaseError for a name of nothing, SideError for a callable that fails.
    """
    from parity.boundary.callables import load_callable
    from parity.boundary.failing import failing
    from parity.errors import CaseError

    made = []
    for target in (reference, port, *([inputs] if inputs else [])):
        function = load_callable(target)
        with failing(target):
            made.append(function())
    if inputs:
        return made[0], made[1], made[2]
    for target, value in zip((reference, port), made, strict=True):
        if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (tuple, dict))):
            raise CaseError(
                f"{target} returns a {type(value).__name__}, no (model, inputs): give --inputs module:callable"
            )
    return made[0][0], made[1][0], made[0][1]
