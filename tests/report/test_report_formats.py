"""Markdown for pull requests and JUnit XML for CI."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

from report_samples import HOSTILE, diverged, hostile, incomparable, match

from parity.report.junit import junit, write_junit
from parity.report.markdown import MAX_CHARACTERS, markdown, write_markdown


def test_markdown_table_and_details() -> None:
    text = markdown([match(), diverged(), incomparable()], {"svi/cuda": "no CUDA device"})
    lines = text.splitlines()
    assert lines[0] == "### parity: 1 match, 1 diverged, 1 incomparable, 1 not run"
    assert lines[4] == "| `waypoint/tiny` | ✅ match |  |  |  |  | 600/600 |"
    assert "| `blocks.2.attn.q_rope @ frame=1, step=0` | relative L2 0.0547, floor 6.5e-06 (8,409x) |" in lines[5]
    assert lines[7] == "| `svi/cuda` | ⏭️ not run | no CUDA device | | | | |"
    assert text.count("<details>") == 2
    assert "parity DIVERGED: waypoint/tiny" in text


def test_markdown_escapes() -> None:
    evil = "`|` @everyone [x](http://y) **b** <b> " + HOSTILE
    result = replace(hostile(), case=evil, causes=(replace(diverged().causes[0], text=evil),))
    row = next(line for line in markdown([result]).splitlines() if "diverged |" in line)
    assert "<script>" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", row.replace("\\`", ""))
    assert "&lt;script&gt;" in row
    assert "&#64;everyone" in row
    assert row.replace("\\|", "").count("|") == 8
    details = markdown([result]).split("<details>")[1]
    assert "<script>" not in details.split("```text")[0]


def test_a_fence_in_the_message_does_not_end_the_details() -> None:
    text = markdown([replace(diverged(), notes=("``` </details> ````",))])
    assert "`````text" in text
    assert text.count("`````") == 2


def test_markdown_of_many_cases_fits_a_comment() -> None:
    text = markdown([replace(diverged(), case=f"case{i}") for i in range(400)])
    assert len(text) < MAX_CHARACTERS + 200
    assert "rows or details were left out" in text
    assert markdown([]).startswith("### parity: no results")


def test_junit() -> None:
    root = ET.fromstring(junit([match(), diverged(), incomparable()], {"svi/cuda": "no CUDA device"}).split("\n", 1)[1])
    suite = root[0]
    assert suite.attrib | {"time": ""} == {
        "name": "parity",
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
        "time": "",
    }
    cases = {case.attrib["name"]: case for case in suite}
    assert cases["waypoint/tiny"].find("failure") is None
    failure = cases["waypoint/tiny [fault=rope_half_split]"].find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "diverged"
    assert failure.attrib["message"].startswith(
        "diverged at blocks.2.attn.q_rope @ frame=1, step=0: relative L2 0.0547"
    )
    assert (failure.text or "").startswith("parity DIVERGED: waypoint/tiny")
    skipped = cases["svi/cuda"].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "NOT RUN: no CUDA device"
    properties = {p.attrib["name"]: p.attrib["value"] for p in cases["wan/renamed"].iter("property")}
    assert properties == {"coverage.compared": "0", "coverage.reference": "405", "coverage.port": "352"}


def test_junit_of_hostile_text_is_xml() -> None:
    evil = replace(hostile(), case="a\x00\x1b\ud800\ufffe]]>" + HOSTILE, notes=("]]>\x0b\ud800",))
    root = ET.fromstring(junit([evil], {"\x00": "\x01"}).split("\n", 1)[1])
    assert len(root[0]) == 2


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_junit([match()], tmp_path / "deep" / "junit.xml", {"b": "c"})
    write_markdown([match()], tmp_path / "deep" / "comment.md", {"b": "c"})
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["comment.md", "junit.xml"]
    assert ET.parse(tmp_path / "deep" / "junit.xml").getroot().attrib["skipped"] == "1"
