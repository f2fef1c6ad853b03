"""The operations of both sides next to each other, with what the explanation changes marked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from parity.result import Result

_HEAD = re.compile(r"(reference|port): \d+ operations")
_LINE = re.compile(r"([=!]) (.*?)(?: at (\S+:\d+))?$")


@dataclass(frozen=True)
class Operation:
    """One operation of a side: `known`: the other side has these numbers; `edit`: the explanation or the culprit is about it."""

    text: str
    place: str
    known: bool
    edit: bool

    @property
    def name(self) -> str:
        return self.text.partition("(")[0]


@dataclass(frozen=True)
class Operations:
    """`head`: what is listed; `pairs`: operations side by side, None where one side has nothing; `more`: of each side, how many are left out."""

    head: str
    pairs: tuple[tuple[Operation | None, Operation | None], ...]
    more: tuple[str, ...]

    @property
    def edits(self) -> int:
        return sum(any(op is not None and op.edit for op in pair) for pair in self.pairs)


def operations_of(result: Result) -> Operations | None:
    """Read the listing of a result; None where nothing was listed."""
    marked = _marked(result)
    sides: dict[str, list[Operation]] = {"reference": [], "port": []}
    more, side = [], ""
    for line in result.operations[1:]:
        head = _HEAD.match(line)
        if head is not None:
            side = head[1]
        elif side and (found := _LINE.match(line)) is not None:
            place = found[3] or ""
            edit = (found[2].partition("(")[0], _short(place)) in marked[side]
            sides[side].append(Operation(found[2], place, found[1] == "=", edit))
        elif side:
            more.append(f"{line} in the {side}")
    if not sides["reference"] and not sides["port"]:
        return None
    return Operations(result.operations[0], _paired(sides["reference"], sides["port"]), tuple(more))


def _paired(
    ours: Sequence[Operation], theirs: Sequence[Operation]
) -> tuple[tuple[Operation | None, Operation | None], ...]:
    """Lay equal names side by side, in order; what is between two of them faces each other."""
    pairs: list[tuple[Operation | None, Operation | None]] = []
    matcher = SequenceMatcher(None, [op.name for op in ours], [op.name for op in theirs], autojunk=False)
    for _, i, j, k, m in matcher.get_opcodes():
        pairs += zip_longest(ours[i:j], theirs[k:m])
    return tuple(pairs)


def _marked(result: Result) -> Mapping[str, set[tuple[str, str]]]:
    """Operations by name and place that the likeliest cause with edits names, else the culprit's."""
    for cause in result.causes:
        listed = {side: cause.parameters.get(side) for side in ("reference", "port")}
        if all(isinstance(lines, (list, tuple)) for lines in listed.values()):
            marked = {side: {_named(line) for line in lines or ()} for side, lines in listed.items()}
            if any(name for names in marked.values() for name, _ in names):
                return marked
    culprit = result.culprit
    if culprit is None or not culprit.operation or not culprit.source:
        return {"reference": set(), "port": set()}
    return {"reference": set(), "port": {(culprit.operation.partition("(")[0], _short(culprit.source))}}


def _named(line: object) -> tuple[str, str]:
    """`mul at /path/rope.py:55: code` as ("mul", "rope.py:55")."""
    found = re.match(r"(\S+) at (\S+?:\d+)", str(line))
    return (found[1], _short(found[2])) if found else ("", "")


def _short(place: str) -> str:
    return os.path.basename(place)
