"""The pytest plugin, run by pytest itself: the fixture, the marker on a user's own cases, the reports, and the message of a failure."""

from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata

import pytest
from _pytest.pytester import SysModulesSnapshot
from core_project import CASE, PYPROJECT, write_project

import parity
from parity.case.discovery import find_systems
from parity.errors import ParityFailure
from parity.pipeline import run_case
from parity.report.text import COLUMNS, LINES, failure_message

INSTALLED = any(entry.value == "parity.pytest_plugin" for entry in metadata.entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", "parity.pytest_plugin")

MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.norm = nn.LayerNorm(8, eps=eps)
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.proj(self.norm(x)))


def make(eps=1e-6):
    torch.manual_seed(0)
    return nn.Sequential(Block(eps), Block(eps))


def inputs():
    return (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
"""


OWN = ("test_user", "models_under_test", "cases")


@pytest.fixture(autouse=True)
def keep_libraries(monkeypatch):
    """pytester forgets the modules that an inner run loads. Libraries must stay: those of torch cannot be loaded twice."""

    def snapshot(self) -> SysModulesSnapshot:
        return SysModulesSnapshot(preserve=lambda name: name.partition(".")[0] not in OWN)

    monkeypatch.setattr(pytest.Pytester, "_Pytester__take_sys_modules_snapshot", snapshot)


@pytest.fixture
def run(keep_libraries, pytester):
    """Run the tests of the folder in this process; return the result."""
    pytester.makepyfile(models_under_test=MODELS)

    def inline(*args: str):
        return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:hypothesispytest", "-p", "no:cacheprovider", *args)

    return inline


def test_the_fixture_passes_and_fails_with_a_message_to_act_on(pytester, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # pytest cuts its summary lines to the width of the terminal
    pytester.makepyfile(
        test_user="""
        from models_under_test import inputs, make

        def test_right(assert_parity):
            result = assert_parity(make(), make(), inputs())
            assert result.verdict == "match"
            assert result.coverage.compared > 10

        def test_wrong(assert_parity):
            assert_parity(make(), make(eps=1e-2), inputs())
        """
    )
    result = run("--parity-report", "pages")
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    message = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    assert any(line.startswith("parity.errors.ParityFailure: parity DIVERGED: check/test_wrong") for line in message)
    assert any(re.match(r"first +0\.norm ", line) for line in message)
    assert any(re.match(r"error +relative L2 [\d.e-]+, floor [\d.e-]+ \([\d,]+x\)", line) for line in message)
    assert any(re.match(r"culprit +0\.norm, operation native_layer_norm", line) for line in message)
    assert any("> return x + torch.nn.functional.gelu(self.proj(self.norm(x)))" in line for line in message)
    assert re.search(r"cause +(\S+ )*?eps 0\.01 .*?\[N1, ", " ".join(message))
    assert any(re.match(r"report +.*test_wrong-[0-9a-f]{8}\.html", line) for line in message)
    # The message is all that is shown: no frame of the plugin, no source of the harness.
    assert "pytest_plugin.py" not in text
    assert "parity reports:" in text
    pages = sorted(p.name for p in (pytester.path / "pages").glob("*.html"))
    assert [re.sub("-[0-9a-f]{8}", "", name) for name in pages] == [
        "index.html",
        "test_user.py--test_right.html",
        "test_user.py--test_wrong.html",
    ]
    # pytest's own summary says where and what.
    assert re.search(r"FAILED test_user.py::test_wrong - .*DIVERGED: check/test_wrong at 0\.norm", text)
    assert "test_wrong" in (pytester.path / "pages" / "index.html").read_text()


TWINS = """
import pytest
from models_under_test import inputs, make

@pytest.mark.parametrize("eps", [1e-2, 1e-3])
def test_twice(assert_parity, eps):
    with pytest.raises(AssertionError):
        assert_parity(make(), make(eps=eps), inputs())
    assert_parity(make(), make(), inputs())
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_assertion_of_every_test_has_a_page_of_its_own(pytester, run, workers):
    for name in ("test_user_a", "test_user_b"):
        pytester.makepyfile(**{name: TWINS})
    result = run("--parity-report", "pages", "-n", workers)
    result.assert_outcomes(passed=4)
    pages = {p.name for p in (pytester.path / "pages").glob("*.html")}
    assert len(pages) == 1 + 8
    index = (pytester.path / "pages" / "index.html").read_text(encoding="utf-8")
    assert all(name == "index.html" or name in index for name in pages)
    assert "4 match, 4 diverged" in result.stdout.str() + index


def test_cases_of_a_users_own_project_become_tests(pytester, run):
    pytester.makefile(".toml", pyproject=PYPROJECT)
    (pytester.path / "cases" / "tiny").mkdir(parents=True)
    (pytester.path / "cases" / "tiny" / "case.py").write_text(CASE)
    pytester.makepyfile(
        test_user="""
        import pytest

        @pytest.mark.parity("tiny")
        def test_all(parity_case, assert_parity):
            assert_parity(parity_case, isolate=False)

        @pytest.mark.parity("tiny/two")
        def test_one(parity_case, assert_parity):
            assert parity_case.name == "two"

        @pytest.mark.parity()
        def test_every_one(parity_case):
            assert parity_case.system == "tiny"

        def test_fault(assert_parity):
            from parity.case.discovery import find_systems
            system = find_systems()["tiny"]
            with pytest.raises(AssertionError, match="DIVERGED: tiny/one .*wide_eps"):
                assert_parity(system.case("one"), fault=system.faults[0])
        """
    )
    result = run("-v", "--strict-markers")
    result.assert_outcomes(passed=6)
    text = result.stdout.str()
    assert "test_all[tiny/one]" in text
    assert "test_one[tiny/two]" in text
    assert "test_one[tiny/one]" not in text
    assert "parity reports:" not in text


def test_a_case_that_is_not_there_is_a_collection_error_of_one_line(pytester, run):
    pytester.makefile(".toml", pyproject="[tool.parity]\ncases = []\n")
    pytester.makepyfile(
        test_user="""
        import pytest

        @pytest.mark.parity("absent")
        def test_absent(parity_case):
            pass
        """
    )
    result = run()
    result.assert_outcomes(errors=1)
    assert "unknown system or case 'absent'; there are: none" in result.stdout.str()


def test_a_mark_that_would_run_nothing_is_an_error(pytester, run):
    pytester.makefile(".toml", pyproject="[tool.parity]\ncases = []\n")
    pytester.makepyfile(
        test_marked_a="import pytest\n@pytest.mark.parity('tiny')\ndef test_one(): pass\n",
        test_marked_b="import pytest\n@pytest.mark.parity()\ndef test_all(parity_case): pass\n",
    )
    result = run()
    result.assert_outcomes(errors=2)
    text = " ".join(result.stdout.str().split())
    assert "test_one is marked parity but takes no parity_case: no case would run" in text
    assert "test_all asks for parity cases, and no cases found: parity init makes one" in text


def test_update_is_off_unless_it_is_asked_for(pytester, run):
    pytester.makepyfile(
        test_user="""
        def test_update(parity_update):
            assert parity_update is False
        """
    )
    run().assert_outcomes(passed=1)
    run("--parity-update").assert_outcomes(failed=1)


def test_the_help_names_the_options(run):
    text = run("--help").stdout.str()
    assert "--parity-report" in text
    assert "--parity-update" in text


# -- the message ------------------------------------------------------------------------------------------------------


def test_the_message_fits_on_a_screen_and_says_what_to_do_next(tmp_path, monkeypatch):
    """At most 40 lines of 120 columns: where, how far, which operation on which line, why, and how to look closer."""
    (tmp_path / "models_of_the_message.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    models = importlib.import_module("models_of_the_message")
    wrong = models.make()
    wrong[1].proj.bias.data[3] += 0.5
    wrong[0].norm.eps = 1e-2
    with pytest.raises(ParityFailure) as caught:
        parity.assert_parity(models.make(), wrong, models.inputs(), label="a long name of a test " * 12)
    lines = str(caught.value).splitlines()
    assert len(lines) <= LINES == 40
    assert max(map(len, lines)) <= COLUMNS == 120
    text = "\n".join(lines)
    assert lines[0].startswith("parity DIVERGED: check/a long name")
    for label in (
        "first     0.norm",
        "error     relative L2",
        "element   [",
        "culprit   0.norm",
        "cause     ",
        "coverage  ",
        "zoom in   ",
    ):
        assert f"  {label}" in text, label
    assert "floor" in text
    assert "independent culprits besides: 1.proj" in text
    assert re.search(r"models_of_the_message\.py:13", text)
    assert isinstance(caught.value, AssertionError)


def test_the_message_of_a_run_in_frames_and_steps_has_its_coordinates(tmp_path, monkeypatch):
    source = CASE.replace("run=lambda model, x: model(x),", "run=lambda model, x: [model.step(x) for _ in range(3)],")
    source = source.replace(
        "probes=lambda model: [Modules(model)],", "probes=lambda model: [Modules(model), Scope(model, 'step', 'step')],"
    )
    source = source.replace("import Modules", "import Modules, Scope").replace(
        "    def forward(self, x):", STEP + "    def forward(self, x):"
    )
    folder = write_project(tmp_path, cases="cases_of_the_message", source=source)
    monkeypatch.setattr(sys, "path", list(sys.path))
    system = find_systems(paths=[folder])["tiny"]
    result, _ = run_case(system.case("one"), fault=system.faults[0])
    text = failure_message(result)
    assert re.search(r"first +norm @ step=2 ", text)
    assert "parity run tiny/one" in text
    assert result.first.coords == {"step": 2}


STEP = """
    count = 0

    def step(self, x):
        self.count += 1
        norm = next(self.children())
        wanted = norm.eps
        norm.eps = wanted if self.count == 3 else 1e-6
        try:
            return self(x)
        finally:
            norm.eps = wanted

"""
