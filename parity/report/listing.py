"""What there is to run, as lines of text: the answer of `parity list`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parity.case.index import NOTHING, check_names

KINDS = ("cases", "faults", "variations", "goldens")


def filter_listing(
    listing: Mapping[str, Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the part of a listing that was asked for (everything for empty names and kinds). Raises CaseError for unknown names."""
    check_names({name: dict(system) for name, system in listing.items()}, names)
    wanted = {name.partition("/")[0] for name in names}
    return {
        name: {key: value for key, value in system.items() if key not in KINDS or not kinds or key in kinds}
        for name, system in listing.items()
        if not wanted or name in wanted
    }


def listing_lines(listing: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line a system, case, fault, variation and golden entry."""
    if not listing:
        yield NOTHING
    for name, system in listing.items():
        yield f"{name}  {system['text']}"
        for case in system.get("cases", ()):
            yield f"  case {case['name']}: {case['text']}"
        for fault in system.get("faults", ()):
            where = f" [{fault['case']}]" if fault["case"] else ""
            yield f"  fault {fault['name']}{where}: {fault['text']} ({fault['spec']})"
        for variation in system.get("variations", ()):
            yield f"  variation {variation['name']}: {variation['text']}"
        for golden in system.get("goldens", ()):
            yield f"  golden entry {golden['entry']} ({', '.join(golden['sides'])})"


def brief_listing(listing: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line a system; of one alone, its cases, and the names of its faults and variations side by side."""
    if len(listing) != 1:
        return [f"{name}: {_counted(system)}: {system['text']}" for name, system in listing.items()] or [NOTHING]
    ((name, system),) = listing.items()
    lines = [f"system: {name}: {_counted(system)}: {system['text']}"]
    lines += [f"case: {case['name']}: {case['text']}" for case in system.get("cases", ())]
    for kind in ("faults", "variations"):
        names = ", ".join(item["name"] for item in system.get(kind, ()))
        lines += [f"{kind}: {part}" for part in textwrap.wrap(names, 200)]
    return lines


def _counted(system: Mapping[str, Any]) -> str:
    return ", ".join(f"{len(system[kind])} {kind}" for kind in KINDS if kind in system)
