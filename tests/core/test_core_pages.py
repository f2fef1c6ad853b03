"""Pages of scores: a command replaces its own sections, what people wrote stays."""

from __future__ import annotations

import json

import pytest

from parity.case import Expectation
from parity.errors import ParityError
from parity.lab.gauntlet import Score
from parity.lab.gauntlet_table import summarise, write_page
from parity.lab.mutation.fit import as_source, fit_by_proof, fitted
from parity.lab.pages import marks, merged_table, section, with_section

HAND = "## First sight\n\n| system | faults |\n|---|---|\n| svi | 12 |\n"


def score(system: str, name: str, **more: object) -> Score:
    return Score(system, name, "fault", "diverged", True, seconds=1.0, **more)


def test_a_section_is_replaced_and_the_rest_stays():
    page = with_section(f"# Page\n\n{HAND}", "systems", "old")
    again = with_section(f"{page}\nmore\n", "systems", "new")
    assert section(again, "systems") == "new"
    assert "old" not in again
    assert HAND in again
    assert again.endswith("more\n")


@pytest.mark.parametrize("mark", [0, 1])
def test_a_broken_mark_is_told(mark):
    with pytest.raises(ParityError, match="section 'a' needs one"):
        with_section(f"text {marks('a')[mark]} text", "a", "new")
    with pytest.raises(ParityError, match="stands before"):
        with_section("\n".join(reversed(marks("a"))), "a", "new")


def test_rows_of_what_did_not_run_stay():
    old, new = "| s | n |\n|---|---|\n| a | 1 |\n| b | 2 |", "| s | n |\n|---|---|\n| b | 3 |\n| c | 4 |"
    assert merged_table(old, new).splitlines()[2:] == ["| a | 1 |", "| b | 3 |", "| c | 4 |"]
    assert merged_table("| s |\n|---|\n| a |", new) == new  # other columns
    assert merged_table("", new) == new


def test_a_gauntlet_of_one_system_keeps_the_others_and_the_hand_written(tmp_path):
    page = tmp_path / "GAUNTLET.md"
    page.write_text(f"# Gauntlet\n\n{HAND}")
    write_page(page, [score("wan", "x", top1=True), score("waypoint", "y")], whole=True)
    write_page(page, [score("waypoint", "z", site=True)], whole=False)
    text = page.read_text()
    assert HAND in text
    table = section(text, "systems").splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["wan", "waypoint"]
    assert "| x |" in section(text, "faults of wan")
    assert "| z |" in section(text, "faults of waypoint")
    assert "| y |" not in text


def test_a_line_counts_only_where_the_fault_has_code_of_its_own():
    rows = [score("s", "a", lined=True, line=True), score("s", "b", lined=True), score("s", "c", verified=True)]
    found = summarise([*rows, Score("s", "v", "variation", "diverged", True)])[0]
    assert (found.faults, found.line, found.lined, found.verified, found.false_alarms) == (3, 1, 2, 1, 1)
    assert Expectation("x").lines == ""


def test_confidence_is_never_fitted_on_the_held_half(tmp_path):
    causes = [{"proof": "verified" if i % 2 else "hint", "score": i / 40, "right": i > 12} for i in range(40)]
    path = tmp_path / "mutants.json"
    path.write_text(json.dumps({"families": [{"family": "llama", "outcomes": [{"causes": causes}]}]}))
    table = fitted(path)
    assert table == fit_by_proof(causes)
    assert set(table) == {"verified", "hint"}
    assert "'verified': ((" in as_source(table)
    path.write_text(json.dumps({"families": [{"family": "sana", "outcomes": []}]}))
    with pytest.raises(ParityError, match="held half \\(sana\\)"):
        fitted(path)
    path.write_text("[]")
    with pytest.raises(ParityError, match="cannot read"):
        fitted(path)
