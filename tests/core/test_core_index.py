"""What there is, kept from the last time: quick, never stale; and cases side by side, in the order that was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from core_project import write_project

from parity.case.discovery import case_files, find_systems, list_systems
from parity.case.index import check_names, keep_listing, kept_listing
from parity.errors import CaseError
from parity.session import processes_for

NUMBER = count(70_000)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    write_project(tmp_path, cases=f"cases{next(NUMBER)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_kept_listing_is_what_a_fresh_one_is_and_ends_with_the_first_change(project):
    root, files = case_files()
    assert kept_listing(root, files) is None
    fresh = list_systems()
    assert kept_listing(root, files) == fresh
    files[0].write_text(files[0].read_text(encoding="utf-8") + "\n# one more line\n", encoding="utf-8")
    assert kept_listing(root, files) is None


def test_a_new_data_file_beside_a_case_ends_it_too(project):
    root, files = case_files()
    list_systems()
    (files[0].parent / "names.yaml").write_text("[]\n", encoding="utf-8")
    assert kept_listing(root, files) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', '{"files": {}, "systems": 5}', "[" * 100_000])
def test_a_damaged_listing_is_made_again(project, text):
    root, files = case_files()
    fresh = list_systems()
    (kept,) = (root / ".parity_cache").glob("systems-*.json")
    kept.write_text(text, encoding="utf-8")
    assert kept_listing(root, files) is None
    assert list_systems() == fresh


def test_a_listing_that_cannot_be_kept_stops_nothing(project):
    (project / ".parity_cache").write_text("in the way", encoding="utf-8")
    root, files = case_files()
    keep_listing(root, files, find_systems())
    assert kept_listing(root, files) is None


def test_a_known_name_is_refused_before_anything_is_imported(project):
    find_systems()
    code = "import sys; from parity.cli import main; sys.argv = ['parity', 'run', 'tinny']; main()"
    run = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=project, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 2
    assert "did you mean 'tiny'?" in done.stderr
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_names_of_a_listing_are_checked_with_the_closest_one():
    listing = {"wan": {"cases": [{"name": "wan/t2v"}, {"name": "wan/i2v"}]}}
    check_names(listing, ["wan", "wan/t2v"])
    with pytest.raises(CaseError, match="did you mean 'wan'"):
        check_names(listing, ["wam"])
    with pytest.raises(CaseError, match="did you mean 't2v'"):
        check_names(listing, ["wan/tv2"])


def test_processes_are_one_where_they_cannot_help():
    assert processes_for(4, "cuda") == 1
    assert processes_for(3, "cpu") == 3
    assert processes_for(0, "cpu") >= 1


def test_side_by_side_gives_what_one_after_the_other_gives(project):
    """Verdicts, places, order and reports are the same; a side that fails is counted, not lost."""

    def run(name: str, *more: str) -> tuple[int, dict, list[str]]:
        command = [sys.executable, "-m", "parity", "run", "-q", "--json", f"{name}.json", "--html", name, *more]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        data = json.loads((project / f"{name}.json").read_text(encoding="utf-8"))
        return done.returncode, data, sorted(p.name for p in (project / name).iterdir())

    one, two = run("one"), run("two", "--jobs", "2")
    assert one[0] == two[0]
    assert one[2] == two[2]
    assert len(one[2]) >= 2

    def judged(data: dict) -> list[tuple]:
        return [(r["case"], r["verdict"], r["first"], r["coverage"]) for r in data.get("results", [data])]

    assert judged(one[1]) == judged(two[1])
