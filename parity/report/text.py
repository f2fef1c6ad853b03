"""What a terminal shows: the table of `parity run` and the message of a failing `assert_parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from parity.report.wording import (
    VERDICT_TEXT,
    case_name,
    cause_text,
    clean,
    clip,
    coords_text,
    counts,
    coverage_text,
    culprit_text,
    element,
    headline,
    lost_isolation,
    measured,
    number,
    place,
    some,
    times_floor,
    total_seconds,
    wrap,
)
from parity.result import Divergence, Result

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = 120
LINES = 40
STYLES: Mapping[str, str] = {
    "match": "green",
    "diverged": "bold red",
    "incomparable": "bold yellow",
    "incomplete": "bold yellow",
    "not run": "dim",
}
_LABEL = 10


def summary_table(results: Sequence[Result], not_run: Mapping[str, str] | None = None) -> Table:
    """Return a rich table with one row a case; `not_run` maps the cases that did not run to the reason why."""
    from rich.table import Table
    from rich.text import Text

    not_run = not_run or {}
    caption = counts(results) + (f", {len(not_run)} not run" if not_run else "")
    table = Table(
        caption=caption, caption_justify="left", caption_style="", header_style="bold", box=None, pad_edge=False
    )
    for name in ("case", "verdict", "first divergence", "error", "culprit, top cause"):
        table.add_column(name, overflow="fold", no_wrap=name in ("verdict", "error"))
    table.add_column("coverage", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for result in results:
        # Text, not markup: names come from files, and brackets in them are not styles.
        verdict = Text(result.verdict, style=STYLES.get(result.verdict, ""))
        if lost_isolation(result):
            verdict.append(f"\nisolation {clean(result.isolation['level'])}", style="yellow")
        cells = [Text(cell) for cell in _cells(result)]
        table.add_row(cells[0], verdict, *cells[1:])
    for case, reason in not_run.items():
        table.add_row(Text(clean(case)), Text("not run", style=STYLES["not run"]), Text(clean(reason)))
    return table


def _cells(result: Result) -> list[str]:
    """One line for what is (site, error, culprit), one below for where and why (coordinates, over floor, cause)."""
    first, found = result.first, []
    site = error = ""
    if first is not None:
        site = f"{clip(first.site, 60)}\n{clip(coords_text(first.coords), 60)}".rstrip()
        over = times_floor(first.error, first.floor)
        error = f"{number(first.error)}\n{over}".rstrip() if over else clip(measured(first), 40)
    if result.culprit is not None:
        operation = f" {clip(result.culprit.operation, 30)}" if result.culprit.operation else ""
        found.append(clip(result.culprit.module or "(root)", 40) + operation)
    if result.causes:
        top = result.causes[0]
        found.append(f"{clean(top.class_id)} {clip(top.name, 40)} ({top.confidence:.2f})".strip())
    coverage = f"{result.coverage.compared}/{result.coverage.reference}"
    case = case_name(result).replace(" [", "\n[", 1)
    return [case, site, error, "\n".join(found), coverage, f"{total_seconds(result):.1f}"]


def failure_message(result: Result) -> str:
    """Return what a failing parity check says, at most 40 lines of 120 columns, without a trailing newline.

    A result that was zoomed into has the operations below, as many lines as there are.
    """
    lines = [headline(result, COLUMNS)]
    lines += _field("", VERDICT_TEXT[result.verdict], 1)
    if result.first is not None:
        lines += _first(result.first)
    lines += _culprits(result)
    lines += _causes(result)
    if result.first is not None and result.first.locality:
        lines += _field("locality", "; ".join(clean(part) for part in result.first.locality), 3)
    lines += _field("coverage", coverage_text(result.coverage), 1)
    if lost_isolation(result):
        lines += _field("isolation", lost_isolation(result), 2)
    coverage = result.coverage
    if coverage.unaligned_reference:
        lines += _field("", f"unaligned in the reference: {some(coverage.unaligned_reference, 3)}", 2)
    if coverage.unaligned_port:
        lines += _field("", f"unaligned in the port: {some(coverage.unaligned_port, 3)}", 2)
    for position, note in enumerate(result.notes[:3]):
        lines += _field("" if position else "notes", clean(note), 1)
    tail: list[str] = []
    if result.report:
        tail += _field("report", clean(result.report), 2)
    if result.command:
        tail += _field("zoom in", clean(result.command), 3)
    below = ["", *(clip(line, 2 * COLUMNS) for line in result.operations)] if result.operations else []
    return "\n".join([*lines[: LINES - len(tail)], *tail, *below])


def causes_text(result: Result) -> str:
    """Return every cause of a result with its evidence, the best first; not cut."""
    lines = [headline(result, COLUMNS)]
    for rank, cause in enumerate(result.causes, 1):
        lines.append(f"{rank}. {clean(cause.text) or clean(cause.name)}")
        said = [("class", cause.class_id), ("proof", cause.proof), ("confidence", f"{cause.confidence:.2f}")]
        said += [("leaves", f"{cause.residual:.3g}"), ("patch", cause.patch or "")]
        said += [(clean(key), clean(value)) for key, value in cause.parameters.items()]
        lines += [f"   {key:<10} {clean(value)}" for key, value in said if value]
    if result.first is not None and not result.causes:
        lines.append("unexplained: no hypothesis fits the numbers")
    return "\n".join([*lines, *details(result)])


def details(result: Result) -> list[str]:
    """Return what `--verbose` adds: every note, the seconds of each stage, where the environments differ; a line each."""
    seconds = ", ".join(f"{clean(stage)} {value:.1f}" for stage, value in result.seconds.items())
    lines = [f"  seconds   {seconds}"] if seconds else []
    lines += [f"  note      {clean(note)}" for note in result.notes]
    return lines + [f"  differs   {clean(line)}" for line in result.environment.get("differences", ())]


def _field(label: str, text: str, limit: int) -> list[str]:
    wrapped = wrap(text, COLUMNS - _LABEL - 2, limit)
    return [f"  {label if number == 0 else '':<{_LABEL}}{line}".rstrip() for number, line in enumerate(wrapped)]


def _first(first: Divergence) -> list[str]:
    lines = _field("first", f"{place(first.site, first.coords, 80)}  ({clean(first.kind)}, {clean(first.tier)})", 2)
    if first.port:
        lines += _field("", f"in the port: {clip(first.port, 80)}", 1)
    lines += _field("error", measured(first), 1)
    if element(first):
        lines += _field("element", element(first), 2)
    if first.detail:
        lines += _field("", clean(first.detail), 2)
    return lines


def _culprits(result: Result) -> list[str]:
    lines: list[str] = []
    if result.culprit is not None:
        lines += _field("culprit", culprit_text(result.culprit, 80), 4)
        if result.culprit.code:
            lines += _field("", f"> {clean(result.culprit.code)}", 1)
        if result.culprit.detail:
            lines += _field("", clean(result.culprit.detail), 2)
    others = [c.module for c in result.culprits if result.culprit is None or c.module != result.culprit.module]
    if others:
        lines += _field("", f"independent culprits besides: {some(others, 3)}", 2)
    return lines


def _causes(result: Result) -> list[str]:
    if not result.causes:
        return _field("cause", "unexplained: no hypothesis fits the numbers", 1) if result.first is not None else []
    top, *others = result.causes
    lines = _field("cause", cause_text(top), 4)
    lines += _field("patch", clean(top.patch), 2) if top.patch else []
    for position, cause in enumerate(others[:2]):
        lines += _field("" if position else "or", cause_text(cause), 2)
    return lines
