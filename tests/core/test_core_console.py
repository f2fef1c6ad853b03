"""Pages with a session on the console: each command is run as it stands, and says what the page shows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from core_imports import ROOT

from parity import cli
from parity.case import Case, Expectation, Fault, Side, System, Variation

EXAMPLE = ROOT / "docs" / "examples" / "green"
OWN = ("pair", "myport", "upstream", "cases")
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@pytest.fixture
def console(tmp_path, monkeypatch):
    """The example's folder, to work in; its modules are forgotten after every command."""
    shutil.copytree(EXAMPLE, tmp_path / "green", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "green")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(line: str) -> str:
        program, *words = shlex.split(line)
        if program == "sed":
            subprocess.run([program, *words], check=True)
            return ""
        said = io.StringIO()
        monkeypatch.setattr(sys, "argv", [program, *words])
        with contextlib.redirect_stdout(said):
            if program == "python":
                monkeypatch.syspath_prepend(".")
                runpy.run_path(words[0], run_name="__main__")
            else:
                assert program == "parity", f"no command that a page may use: {line}"
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                assert stop.value.code in (None, 0, 1), line
        for name in [n for n in sys.modules if n.partition(".")[0] in OWN]:
            del sys.modules[name]
        return said.getvalue()

    return run


def sessions(page: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a page, each with the lines that it is said to print."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
    return found


def normal(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


@pytest.mark.parametrize("page", ["tutorial.md", "cases.md"])
def test_a_page_says_what_its_commands_print(console, page):
    """Lines in any number of columns; figures vary between machines; what stands before `...` is the beginning of a line."""
    for command, shown in sessions(page):
        printed = [normal(line) for line in console(command).splitlines()]
        for line in shown:
            start = normal(line.partition("...")[0])
            assert any(said.startswith(start) for said in printed), f"{command}: no line {line!r} in\n" + "\n".join(
                printed
            )


@pytest.mark.parametrize("record", [Case, Side, System, Fault, Variation, Expectation])
def test_the_page_of_cases_has_every_field(record):
    page = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
    assert [f.name for f in dataclasses.fields(record) if f"`{f.name}`" not in page] == []


def test_the_page_of_agents_has_every_key():
    page = (ROOT / "docs" / "howto" / "agents.md").read_text(encoding="utf-8")
    source = (ROOT / "parity" / "report" / "brief.py").read_text(encoding="utf-8")
    keys = set(re.findall(r'yield "([a-z ]+)"', source)) - {"zoom"}
    assert len(keys) > 15
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_the_site_has_every_page():
    """What a reader cannot find in the navigation is not there."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ("tutorial.md", "cases.md", *(f"howto/{p.name}" for p in (ROOT / "docs" / "howto").glob("*.md"))):
        assert f": {page}" in listed
        assert Path(ROOT / "docs" / page).is_file()


def command_lines() -> list[tuple[str, str]]:
    """Every command line of parity in a block of a page: (page, line)."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (page.name, line.removeprefix("$ ").partition("  #")[0].strip())
        for page in pages
        if page.name not in ("LOG.md", "GAUNTLET.md", "PERFORMANCE.md")
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if re.match(r"(\$ )?parity [a-z]", line)
    ]


def test_every_command_of_every_page_takes_its_options():
    from typer.testing import CliRunner

    runner, wrong, known = CliRunner(), [], {}
    lines = [(page, line) for page, line in command_lines() if line.split()[1] in cli.COMMANDS]
    assert len({line.split()[1] for _, line in lines}) >= 8
    for page, line in lines:
        name = line.split()[1]
        if name not in known:
            said = runner.invoke(cli.app, [name, "--help"]).output
            known[name] = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said.partition("Examples:")[0]))
        options = {word.partition("=")[0] for word in line.split(" -- ")[0].split() if re.match(r"--?[a-z]", word)}
        wrong += [(page, line, option) for option in options - known[name]]
    assert wrong == []
