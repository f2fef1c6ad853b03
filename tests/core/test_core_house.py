"""docs/HOW.md shows the house as it is: every room, and files that exist."""

from __future__ import annotations

import re

import pytest
from core_imports import ROOT
from sampled import MISSES, ONE_IN
from test_core_law import ROOMS

from parity.boundary import limits

HOW = (ROOT / "docs" / "HOW.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (.+?) \| `(.+?)` \|$", HOW, flags=re.MULTILINE)


def test_every_room_is_drawn():
    drawn = HOW.partition("## The house")[2].partition("### ")[0]
    assert [
        name for names in ROOMS for name in names if not re.search(rf"\b{name}\b", drawn) and name != "__main__"
    ] == []


@pytest.mark.parametrize(("question", "file"), TABLE)
def test_where_do_i_change(question, file):
    assert list(ROOT.glob(file.replace("<system>", "*"))), f"{question}: there is no {file}"


def test_there_are_enough_questions():
    assert len({question for question, _ in TABLE}) == len(TABLE) >= 15


def test_every_file_that_a_page_names_exists():
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {
        (page.name, name)
        for page in pages
        if page.name not in ("LOG.md", "GAUNTLET.md")  # they tell what was, and name what a run found
        for name in re.findall(
            r"`((?:parity|tests|fixtures|reference|ported)/[\w/.]+\.py)`", page.read_text(encoding="utf-8")
        )
    }
    assert len(named) >= 10
    assert sorted(pair for pair in named if not (ROOT / pair[1]).is_file()) == []


LONGEST_FILE = 400


def test_what_the_suite_samples_or_knows_to_miss_exists():
    for name in (*ONE_IN, *MISSES):
        file, _, function = name.partition("[")[0].partition("::")
        found = [path for path in (ROOT / "tests").rglob("test_*.py") if path.as_posix().endswith("/" + file)]
        assert len(found) == 1, name
        assert f"def {function}(" in found[0].read_text(encoding="utf-8"), name


def test_no_file_of_the_harness_is_too_long_to_read():
    files = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in (ROOT / "parity").rglob("*.py")}
    assert {name: n for name, text in files.items() if (n := len(text.splitlines())) > LONGEST_FILE} == {}


def test_every_limit_has_its_row_and_reason():
    page = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    listed = [name for names, value, reason in rows if value and reason for name in re.findall(r"[A-Z_]+", names)]
    assert sorted(listed) == sorted(name for name in vars(limits) if name.isupper())
