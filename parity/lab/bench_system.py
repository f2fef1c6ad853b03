"""`parity bench SYSTEM`: the port against the reference on the same work, interleaved in one run, median of several."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from parity.capture.environment import describe_environment
from parity.case.case import Bench
from parity.case.discovery import find_systems, get_system
from parity.errors import CaseError
from parity.files import write_text


def bench_systems(
    names: Sequence[str], repeats: int, as_json: Path | None, cases: list[Path] | None, out: Console
) -> int:
    """Serve `parity bench SYSTEM...`. Raises CaseError for a system without anything to time."""
    if repeats < 1:
        raise CaseError("--repeats must be at least 1")
    systems = find_systems(paths=cases, names=list(names))
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        benches = get_system(systems, name).benches
        if not benches:
            raise CaseError(f"system {name} has nothing to time: its SYSTEM declares no benches")
        for bench in benches:
            rows[f"{name}/{bench.name}"] = time_bench(bench, repeats)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("work", "reference s", "port s", "reference / port"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for name, row in rows.items():
        table.add_row(name, f"{row['reference']:.4f}", f"{row['port']:.4f}", f"{row['ratio']:.1f}")
    out.print(table)
    if as_json is not None:
        write_text(as_json, json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")
    return 0


def time_bench(bench: Bench, repeats: int) -> dict[str, float]:
    """Run both sides once to warm up, then in turn; return median seconds of each and their ratio."""
    sides = {"reference": bench.reference(), "port": bench.port()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad():
        sides["port"]()
        for _ in range(repeats):
            for name, work in sides.items():
                start = time.process_time()
                work()
                times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": medians["reference"] / max(medians["port"], 1e-9)}
