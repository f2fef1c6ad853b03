"""JSON from outside: bounded in size, depth, length and range, so that what comes out can be walked without a thought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity.boundary.limits import DEPTH, INTEGER, ITEMS, JSON_BYTES, TEXT
from parity.boundary.text import reason
from parity.errors import TraceError


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises TraceError, one line, for what is missing, no JSON or beyond the limits."""
    path = Path(path)
    try:
        if not path.is_file():
            raise TraceError(f"cannot read {path}: no such file")
        if path.stat().st_size > JSON_BYTES:
            raise TraceError(f"cannot read {path}: more than {JSON_BYTES >> 20} MiB of JSON")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is no JSON: {reason(error)}") from None
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot read {path}: {reason(error)}") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text; `where` names it in messages. Raises TraceError."""
    if len(text) > JSON_BYTES:
        raise TraceError(f"{where}: more than {JSON_BYTES >> 20} MiB of JSON")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise TraceError(f"{where}: its JSON nests deeper than {DEPTH} levels") from None
    except ValueError as error:
        raise TraceError(f"{where} is no JSON: {reason(error)}") from None
    _bounded(value, where)
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > INTEGER:
        raise ValueError("a whole number has more than 64 bits")
    return int(digits)


def _bounded(value: Any, where: str) -> None:
    """Check depth, lengths and count level by level, without recursion."""
    level, depth, count = [value], 0, 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise TraceError(f"{where}: its JSON nests deeper than {DEPTH} levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                if any(len(key) > TEXT for key in item):
                    raise TraceError(f"{where}: a name in it has more than {TEXT} characters")
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and len(item) > TEXT:
                raise TraceError(f"{where}: a text in it has more than {TEXT} characters")
        count += len(below)
        if count > ITEMS:
            raise TraceError(f"{where}: more than {ITEMS} values of JSON")
        level = below
