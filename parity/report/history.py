"""What earlier runs found: one line of JSON a case and run in `history.jsonl` beside the index."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from parity.report.wording import case_name, clip, nearest, total_seconds
from parity.result import EXIT_STATUS, Result, plain

FILE = "history.jsonl"
SHOWN = 24  # runs of a case
MOST_BYTES = 4 << 20  # of the file's end


@dataclass(frozen=True)
class Past:
    """One earlier run of a case: when (UTC, ISO), its verdict, where it first departed, and its error over its floor (of a match, the largest)."""

    time: str
    verdict: str
    site: str = ""
    over: float | None = None


def add_history(results: Sequence[Result], folder: Path, now: datetime | None = None) -> None:
    """Append one line a result to the history of a folder."""
    time = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = []
    for result in results:
        first, worst = result.first, nearest(result.rows)
        over = (
            first.error / first.floor
            if first and first.floor > 0
            else worst[0].error / worst[0].floor
            if worst
            else None
        )
        line = {
            "time": time,
            "case": case_name(result),
            "verdict": result.verdict,
            "site": first.site if first else "",
            "over": over,
            "compared": result.coverage.compared,
            "seconds": round(total_seconds(result), 3),
        }
        lines.append(json.dumps(plain(line), ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8", errors="replace") as file:
        file.write("".join(lines))


def read_history(folder: Path) -> dict[str, tuple[Past, ...]]:
    """Read the last runs of each case, the newest last; lines that are none are passed over, for anybody may have written them."""
    path = folder / FILE
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    found: dict[str, list[Past]] = {}
    for line in lines:
        entry = _past(line)
        if entry is not None:
            found.setdefault(entry[0], []).append(entry[1])
    return {case: tuple(runs[-SHOWN:]) for case, runs in found.items()}


def _past(line: str) -> tuple[str, Past] | None:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or raw.get("verdict") not in EXIT_STATUS or not isinstance(raw.get("case"), str):
        return None
    over = raw.get("over")
    if isinstance(over, bool) or not isinstance(over, (int, float)) or not math.isfinite(over):
        over = None
    return raw["case"], Past(clip(raw.get("time") or "", 24), raw["verdict"], clip(raw.get("site") or "", 120), over)
