"""Results read back from JSON: anybody may have written them, so every field is checked against the types of `parity.result`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from parity.boundary.json import read_json
from parity.boundary.schema import validated
from parity.boundary.text import reason
from parity.errors import TraceError
from parity.result import Result

MOST_RESULTS = 10_000  # of one file: a page each


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read results from JSON files (one result, or a list under "results"). Raises TraceError, one line, for what is none."""
    found: list[Result] = []
    for path in paths:
        try:
            raw = read_json(path)
        except TraceError as error:
            raise TraceError(f"cannot read the result {path}: {error}") from None
        try:
            items = raw.get("results", [raw]) if isinstance(raw, dict) else None
            if not isinstance(items, list) or not 0 < len(items) <= MOST_RESULTS:
                raise ValueError('it is neither one result nor a list under "results"')
            found += [result_from_json(item) for item in items]
        except ValueError as error:
            raise TraceError(f"cannot read the result {path}: {reason(error, 200)}") from None
    return found


def result_from_json(item: Any) -> Result:
    """Rebuild a result from its JSON. Raises ValueError, one line, with what is wrong."""
    if not isinstance(item, dict):
        raise ValueError(f"a result is a JSON object, not {type(item).__name__}")
    return validated(_adapter(), item)


@functools.cache
def _adapter() -> TypeAdapter[Result]:
    return TypeAdapter(Result)
