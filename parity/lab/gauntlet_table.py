"""The score tables of the gauntlet, on the terminal and as sections of docs/GAUNTLET.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from parity.diagnose.calibration import calibrated
from parity.lab.gauntlet import Score
from parity.lab.pages import merged_table, section, write_sections


@dataclass(frozen=True)
class Summary:
    """The score table's row of one system."""

    system: str
    faults: int
    detected: int
    site: int
    module: int
    classed: int
    top1: int
    top3: int
    verified: int
    verified_wrong: int
    line: int
    lined: int  # faults with code of their own in the forward pass
    variations: int
    false_alarms: int
    seconds: float


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """Count by system, in the order in which they come."""
    import pandas as pd

    if not scores:
        return []
    table = pd.DataFrame([asdict(s) for s in scores])
    rows = []
    for system, all_of_it in table.groupby("system", sort=False):
        faults, variations = (all_of_it[all_of_it.kind == kind] for kind in ("fault", "variation"))
        classed, lined = faults[faults.classed], faults[faults.lined]
        counts = {
            name: int(faults[name].sum()) for name in ("detected", "site", "module", "verified", "verified_wrong")
        }
        rows.append(
            Summary(
                system=str(system),
                faults=len(faults),
                classed=len(classed),
                top1=int(classed.top1.sum()),
                top3=int(classed.top3.sum()),
                line=int(lined.line.sum()),
                lined=len(lined),
                variations=len(variations),
                false_alarms=int((variations.verdict != "match").sum()),
                seconds=float(all_of_it.seconds.sum()),
                **counts,
            )
        )
    return rows


COLUMNS = (
    "system",
    "faults",
    "detected",
    "first site",
    "module",
    "cause top 1",
    "cause top 3",
    "verified",
    "verified wrong",
    "source line",
    "variations",
    "false alarms",
    "seconds",
)


def cells(row: Summary) -> list[str]:
    """Return a row of the table, in the order of COLUMNS."""
    parts = (
        (row.detected, row.faults),
        (row.site, row.faults),
        (row.module, row.faults),
        (row.top1, row.classed),
        (row.top3, row.classed),
        (row.verified, row.faults),
    )
    shares = [_share(part, whole) for part, whole in parts]
    rest = (row.verified_wrong, _share(row.line, row.lined), row.variations, row.false_alarms, f"{row.seconds:.0f}")
    return [row.system, str(row.faults), *shares, *map(str, rest)]


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({100 * part / whole:.0f} %)" if whole else "-"


EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Reliability:
    """Causes of about one confidence, first or not: how many, how sure they were on average, how many named the right class."""

    low: float
    high: float
    count: int
    stated: float
    right: float


def reliability(scores: Sequence[Score], edges: Sequence[float] = EDGES) -> list[Reliability]:
    """Compare stated confidences with how often the class was right, over all causes named for faults that expect one."""
    listed = [told for s in scores if s.kind == "fault" and s.classed for told in s.listed]
    return reliability_of([(calibrated(score), right) for score, right, _ in listed], edges)


def reliability_of(given: Sequence[tuple[float, bool]], edges: Sequence[float] = EDGES) -> list[Reliability]:
    """Group (confidence, right) by confidence."""
    rows = []
    for low, high in pairwise(edges):
        inside = [(c, right) for c, right in given if low <= c < high or (c == high == edges[-1])]
        if inside:
            stated, right = sum(c for c, _ in inside), sum(right for _, right in inside)
            rows.append(Reliability(low, high, len(inside), stated / len(inside), right / len(inside)))
    return rows


def write_page(path: Path, scores: Sequence[Score], whole: bool) -> None:
    """Replace the sections of the systems that ran; what people wrote, and what other commands made, stays.

    whole: every system ran, so that the table of confidences is made again too.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    table = markdown_table(COLUMNS, [cells(row) for row in summarise(scores)])
    sections = {"systems": table if whole else merged_table(section(page, "systems"), table)}
    if whole:
        sections["confidence"] = confidence_text(reliability(scores))
    for system in dict.fromkeys(s.system for s in scores):
        sections[f"faults of {system}"] = _faults(system, scores)
    write_sections(path, sections, "Gauntlet")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def confidence_text(rows: Sequence[Reliability]) -> str:
    """Return the table of confidences."""
    text = "Of the causes with a confidence in each range, first in their list or not, how many named the right class."
    given = [(f"{r.low:g} to {r.high:g}", str(r.count), f"{r.stated:.2f}", f"{r.right:.2f}") for r in rows]
    return f"{text}\n\n{markdown_table(('confidence', 'causes', 'mean confidence', 'right'), given)}"


def _faults(system: str, scores: Sequence[Score]) -> str:
    rows = []
    for s in scores:
        if s.system == system and s.kind == "fault":
            cause = (s.causes[0] if s.causes else "unexplained").replace("|", "\\|")
            good = "yes" if s.top1 else "top 3" if s.top3 else "-" if not s.classed else "no"
            place = "yes" if s.module else "no"
            line = "-" if not s.lined else "yes" if s.line else "no"
            rows.append((s.name, f"`{s.found}`", cause, "yes" if s.site else "no", place, line, good))
    header = ("fault", "first divergence", "top cause", "site", "module", "line", "cause")
    return f"### {system}\n\n{markdown_table(header, rows)}"
