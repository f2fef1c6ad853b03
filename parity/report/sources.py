"""Source lines for the page: around the line that is blamed, and around the reference's."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Iterator

from parity.report.media import Source
from parity.result import Result

AROUND = 5
MOST = 12
_PLACE = re.compile(r"(?:^| at |, )([^\s:]+\.py:\d+)(?=:|$)")


def sources_of(result: Result) -> dict[str, Source]:
    """Read the lines around every place that the culprits and the first cause name; files that are not there are left out.

    Only for a result that was just made here: a saved one may name any file.
    """
    found: dict[str, Source] = {}
    for place in places(result):
        source = _read(place)
        if source is not None and len(found) < MOST:
            found[place] = source
    return found


def places(result: Result) -> Iterator[str]:
    """Yield `file:line` of the port's line, of the reference's, then of the other culprits."""
    for culprit in (*((result.culprit,) if result.culprit else ()), *result.culprits):
        if culprit.source:
            yield culprit.source
        yield from _PLACE.findall(culprit.detail)


def reference_place(detail: str) -> tuple[str, str]:
    """Return `file:line` and the code of the reference's counterpart that a culprit's detail names; empty where it names none."""
    found = _PLACE.search(detail)
    return (found[1], detail[found.end() :].removeprefix(":").strip()) if found else ("", "")


def _read(place: str) -> Source | None:
    file, _, number = place.rpartition(":")
    lines = linecache.getlines(os.path.abspath(file))
    line = int(number) if number.isdecimal() else 0
    if not 1 <= line <= len(lines):
        return None
    first = max(1, line - AROUND)
    return Source(place, line, first, tuple(text.rstrip("\n") for text in lines[first - 1 : line + AROUND]))
