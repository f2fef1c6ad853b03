"""Pages of scores: a command replaces its own sections, what people wrote stays."""

from __future__ import annotations

import inspect
import json

import pytest

from parity.case import Expectation
from parity.errors import ParityError
from parity.lab.gauntlet import Score
from parity.lab.gauntlet_table import summarise, write_page
from parity.lab.mutation.fit import as_source, fit_by_proof, fitted
from parity.lab.pages import marks, merged_table, section, with_section
from parity.lab.places import defect_code, modules_of

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


@pytest.mark.parametrize(
    ("site", "modules", "owners"),
    [
        ("sigmas", (), ("sigmas",)),
        (r"vae\.in\.video", (), ("vae",)),
        ("corrected|x_next", (), ("corrected", "x_next")),
        (r"vae\.decoder\.cache\.\d+", (), (r"vae\.decoder(\.cache\.\d+)?",)),
        (r"blocks\.0\.attn", ("blocks",), ("blocks",)),
    ],
)
def test_without_a_module_of_its_own_the_owner_of_the_site_is_right(site, modules, owners):
    assert modules_of(Expectation(site, modules=modules)) == owners


def a_switch(port):
    def forward(x):
        return x + 1

    port.forward = forward


def a_shared_tool(port, value):
    port.value = value


class Wrong:
    def forward(self, x):
        return x


def another_switch(port):
    a_shared_tool(port, Wrong)


def values_only(port):
    a_shared_tool(port, 3)


def test_the_code_of_a_defect_is_what_its_switch_puts_in():
    def lines_of(code):
        lines, first = inspect.getsourcelines(code)
        return f":{first}-{first + len(lines) - 1}"

    first = inspect.getsourcelines(a_switch)[1]
    assert defect_code(a_switch).endswith(f"test_core_pages.py:{first + 1}-{first + 2}")
    assert defect_code(another_switch).endswith(lines_of(Wrong))
    assert defect_code(values_only) == ""
