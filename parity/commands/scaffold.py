"""`parity init`: a case, or a pytest file, for the user's own two models; it runs as it is generated."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.options import OUT, waiting
from parity.errors import CaseError, ParityError
from parity.files import write_text

ASKED = {
    "reference": "The reference (package.module:callable that returns it)",
    "port": "The port (package.module:callable that returns it)",
    "inputs": "The inputs (package.module:callable that returns a tuple of arguments)",
}


def init(
    reference: Annotated[
        str, typer.Option("--reference", help="package.module:callable that returns the reference.")
    ] = "",
    port: Annotated[str, typer.Option("--port", help="package.module:callable that returns the port.")] = "",
    inputs: Annotated[
        str, typer.Option("--inputs", help="package.module:callable that returns a tuple of arguments.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the system.")] = "mine",
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where it is written [parity_cases, or tests].")
    ] = None,
    pytest: Annotated[bool, typer.Option("--pytest/--case", help="A pytest file instead of a case.")] = False,
) -> int:
    """Write a case (or a pytest file) for your own two models; asks for what is left out."""
    given = {"reference": reference, "port": port, "inputs": inputs}
    for key, value in given.items():
        if not value and not sys.stdin.isatty():
            raise CaseError(f"give --{key} package.module:callable (on a terminal parity init asks for it)")
        given[key] = value or typer.prompt(ASKED[key])
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise CaseError(f"--name {name!r}: letters, digits and underscores")
    made = _models(given)
    file, values = _place(folder, name, pytest), _values(given, name)
    if file.exists():
        raise CaseError(f"{file} is there already: name another --folder or --name")
    if pytest:
        write_text(file, TEST.format(**values))
        following = f"python -m pytest {file} --parity-report reports"
    else:
        values["alone"] = _names(made, file)
        write_text(file, CASE.format(**values))
        _project(file.parent.parent)
        following = f"parity run {name} --html reports"
    OUT.print(f"wrote {file}\nnext: {following}", markup=False, soft_wrap=True)
    return 0


def _models(given: dict[str, str]) -> tuple[Any, Any, Any]:
    from parity.commands.checking import models_of

    return models_of(given["reference"], given["port"], given["inputs"])


def _place(folder: Path | None, name: str, pytest: bool) -> Path:
    if pytest:
        return (folder or Path("tests")) / f"test_parity_{name}.py"
    return (folder or Path("parity_cases")) / name / "case.py"


def _values(given: dict[str, str], name: str) -> dict[str, str]:
    values = {"name": name}
    for key, target in given.items():
        module, _, attribute = target.partition(":")
        values[f"{key}_module"], values[key] = module, attribute.partition(".")[0]
        values[f"{key}_call"] = f"make_{key}{attribute[len(values[key]) :]}"
    return values


def _names(made: tuple[Any, Any, Any], file: Path) -> str:
    """Write the map of names that one run finds; return which sites stay alone, as the case says it."""
    import yaml

    from parity.align.listed import as_rules
    from parity.api import check

    try:
        with waiting("both sides once, for the map of names"):
            result = check(*made, isolate=False)
    except ParityError as error:
        raise CaseError(f"the two models could not be run side by side: {error}") from None
    rules = as_rules(result.alignment)
    alone = [re.escape(s) for s in (*result.coverage.unaligned_reference, *result.coverage.unaligned_port)]
    write_text(file.with_name("names.yaml"), yaml.safe_dump(rules, sort_keys=False))
    return repr(dict.fromkeys(alone, "no counterpart on the other side: found by parity init, say why"))


def _project(cases: Path) -> None:
    """Tell the project where its cases are, in pyproject.toml; a table that is there already is the user's to change."""
    from parity.case.discovery import find_project

    root = find_project()
    file = root / "pyproject.toml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    listed = cases.resolve()
    place = listed.relative_to(root).as_posix() if listed.is_relative_to(root) else str(listed)
    if "[tool.parity]" not in text:
        write_text(file, f'{text}{chr(10) if text else ""}[tool.parity]\ncases = ["{place}"]\n')
    elif place not in text:
        OUT.print(f'add "{place}" to cases of [tool.parity] in {file}', markup=False, soft_wrap=True)


TEST = '''"""Does the port compute what the reference computes? The message of a failure says where it first departs, and why."""

from {inputs_module} import {inputs} as make_inputs
from {port_module} import {port} as make_port
from {reference_module} import {reference} as make_reference


def test_{name}(assert_parity):
    assert_parity({reference_call}(), {port_call}(), {inputs_call}())
'''

CASE = '''"""The case of {name}: docs/cases.md explains every field in this order."""

from pathlib import Path

import torch

from {inputs_module} import {inputs} as make_inputs
from {port_module} import {port} as make_port
from {reference_module} import {reference} as make_reference
from parity.capture.probes import Modules
from parity.case import Case, Setting, Side, System
from parity.trace.names import load_names


def side(make):
    """One implementation: how it is built, run and seen."""
    return Side(
        build=lambda setting: make().to(setting.device, setting.dtype).eval(),
        run=lambda model, inputs: model(*inputs),  # use the model that is given: it may be a copy in float64
        probes=lambda model: [Modules(model)],  # every module's inputs and outputs
        modules=lambda model: {{"": model}},
    )


def inputs(setting: Setting):
    """The same for both sides, made anew for every run."""
    torch.manual_seed(setting.seed)
    return tuple(
        x.to(setting.device, setting.dtype if x.is_floating_point() else None) if torch.is_tensor(x) else x
        for x in {inputs_call}()
    )


SYSTEM = System(
    name="{name}",
    text="my port against its reference",
    cases=(
        Case(
            system="{name}",
            name="forward",
            text="one forward pass",
            reference=side({reference_call}),
            port=side({port_call}),
            inputs=inputs,
            names=load_names(Path(__file__).with_name("names.yaml")),
            allow_unaligned={alone},
        ),
    ),
)
'''
