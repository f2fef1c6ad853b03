"""The change of one source line that an edit amounts to, where it can be said."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence

from parity.capture.operations import Op

from .search import Edit
from .view import numbers_of, point_of

_WORD = re.compile(r"[A-Za-z_]\w*")


def patch_of(edit: Edit) -> str | None:
    """Return `file:line: before → after`: another number in the port's line, or the reference's line where the port's file has all its names."""
    point = point_of(edit)
    if point is None or not point.source:
        return None
    for op, ours, theirs in numbers_of(edit):
        after = _other_number(op.code, theirs, ours)
        if after is not None:
            return f"{op.source}: {op.code} → {after}"
    own = [op for op in (*edit.port.told, *((edit.user,) if edit.user is not None else ())) if op.source]
    ref = [op for op in edit.reference.told if op.source]
    if len(_lines(own)) != 1 or len(_lines(ref)) != 1 or own[0].code == ref[0].code:
        return None
    if _target(own[0].code) != _target(ref[0].code):
        return None  # another statement, not another form of this one
    file = own[0].source.rpartition(":")[0]
    known = set(_WORD.findall("".join(linecache.getlines(file))))
    if not set(_WORD.findall(ref[0].code)) <= known:
        return None
    return f"{own[0].source}: {own[0].code} → {ref[0].code}"


def _target(code: str) -> str:
    """Return what a statement gives its value to."""
    return "return" if code.startswith("return ") else code.partition("=")[0].strip()


def _lines(ops: Sequence[Op]) -> set[str]:
    return {op.source for op in ops}


def _other_number(code: str, old: object, new: object) -> str | None:
    """Return the line with one number for another, when it is written there once."""
    if not isinstance(old, (int, float)) or not isinstance(new, (int, float)) or isinstance(old, bool):
        return None
    found = [
        m for m in re.finditer(r"(?<![\w.])\d+\.?\d*(?:e[+-]?\d+)?(?![\w.])", code) if float(m.group()) == float(old)
    ]
    if len(found) != 1:
        return None
    return code[: found[0].start()] + repr(new) + code[found[0].end() :]
