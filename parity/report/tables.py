"""Results and traces as pandas tables, for those who want to look further than a report does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas

from parity.result import Result
from parity.trace import Trace


def rows_table(result: Result) -> pandas.DataFrame:
    """Return one line a compared record: site, coordinates (`@frame`, ...), error, floor and the other figures of `Row`."""
    return pandas.DataFrame([_flat(asdict(row)) for row in result.rows])


def records_table(trace: Trace) -> pandas.DataFrame:
    """Return one line a record of a trace: site, coordinates (`@frame`, ...), kind, module, dtype, shape and statistics."""
    lines = []
    for record in trace:
        line: dict[str, Any] = {"site": record.site, "coords": record.coords, "kind": record.kind, "role": record.role}
        line |= {"module": record.module, "dtype": record.dtype, "shape": tuple(record.shape), "order": record.order}
        stats = record.stats
        if stats is not None and stats.count:
            line |= {"min": stats.min, "max": stats.max, "mean": stats.sum / stats.count, "nonfinite": stats.nonfinite}
            line["rms"] = (stats.sumsq / stats.count) ** 0.5
        lines.append(_flat(line))
    return pandas.DataFrame(lines)


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Spread the coordinates over columns of their own, beside the site."""
    coords: Mapping[str, int] = line.pop("coords")
    return {"site": line.pop("site")} | {f"@{axis}": index for axis, index in coords.items()} | line
