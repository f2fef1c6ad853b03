"""The alignment as a list that people can read, and as a name map to start from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parity.align.trials import Hypothesis
from parity.result import Row


def aligned(rows: Iterable[Row], wrong: Sequence[Hypothesis] = ()) -> tuple[dict[str, Any], ...]:
    """Return one entry a pair of sites: the two names, the evidence, the calls compared, the largest error, and whether it is within its floor.

    wrong: pairs that values have vetoed; they come last, with `apart`.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = found.setdefault(
            row.site,
            {
                "port": row.port or row.site,
                "reference": row.site,
                "how": row.how,
                "calls": 0,
                "error": 0.0,
                "agrees": True,
            },
        )
        entry["calls"] += 1
        entry["error"] = max(entry["error"], row.error) if row.error == row.error else entry["error"]
        entry["agrees"] = entry["agrees"] and not row.diverged
    vetoed = [
        {"port": one.port, "reference": site, "how": one.how, "calls": 0, "error": None, "agrees": False, "apart": True}
        for one in wrong
        for site in one.references
    ]
    return (*found.values(), *vetoed)


def lines(alignment: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write one line a pair."""
    written = []
    for pair in alignment:
        told = (
            "apart: later values veto it"
            if pair.get("apart")
            else f"{'agrees' if pair['agrees'] else 'DIFFERS'} ({pair['error']:.1e})"
        )
        written.append(f"{pair['reference']} <- {pair['port']}  by {pair['how']}, {told}")
    return written


def as_rules(alignment: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write a map to start from: one rule a pair, and one a veto."""
    rules: list[dict[str, Any]] = []
    for pair in alignment:
        port = re.escape(pair["port"])
        if pair.get("apart"):
            rules.append({"port": port, "reference": re.escape(pair["reference"]), "apart": True})
        elif pair["port"] != pair["reference"]:
            rules.append({"port": port, "reference": pair["reference"].replace("\\", "\\\\")})
    return rules
