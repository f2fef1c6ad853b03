"""The pages with a worked example: what they print is what their script prints today."""

from __future__ import annotations

import contextlib
import io
import re
import runpy

import pytest
from core_imports import ROOT

PAGES = ("floors", "alignment", "causes")
MEASURED = re.compile(r"\d+\.\d+e[+-]\d+")  # sizes of errors: they vary a little between machines


def printed(name: str) -> list[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"))
    return out.getvalue().splitlines()


def shown(name: str) -> list[str]:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)\n```", page, re.DOTALL)
    assert len(blocks) == 1, "one block of output, without a language; other blocks name theirs"
    return [line.rstrip() for line in blocks[0].splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_shows_what_its_script_prints(name: str) -> None:
    assert [MEASURED.sub("#", line.rstrip()) for line in printed(name)] == [
        MEASURED.sub("#", line) for line in shown(name)
    ]


def test_the_numbers_on_the_page_are_of_the_right_size() -> None:
    """Two figures of a size that tells a rounding from a bug, and no more."""
    pairs = [
        (float(a), float(b))
        for left, right in zip(printed("floors"), shown("floors"), strict=True)
        for a, b in zip(MEASURED.findall(left), MEASURED.findall(right), strict=True)
    ]
    assert len(pairs) > 90
    for now, then in pairs:
        assert now == then or max(now, then) < 1e-12 or 0.5 < now / then < 2, (now, then)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_linked(name: str) -> None:
    readme, how = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/HOW.md"))
    assert f"(docs/{name}.md)" in readme
    assert f"({name}.md)" in how
    assert f"(examples/{name}.py)" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
