"""Results as a GitHub comment: one table, then the details of what did not match, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from parity.files import write_text
from parity.report.text import failure_message
from parity.report.wording import case_name, cause_text, clean, clip, counts, culprit_text, measured, place
from parity.result import Result

MAX_CHARACTERS = 60_000  # GitHub refuses comments over 65 536
_ICONS: Mapping[str, str] = {"match": "✅", "diverged": "❌", "incomparable": "⚠️", "incomplete": "⚠️"}
_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "\\`*_{}[]|~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "#": "&#35;"}
)
_TABLE = (
    "| case | verdict | first divergence | error | culprit | top cause | coverage |",
    "| --- | --- | --- | --- | --- | --- | ---: |",
)


def markdown(results: Sequence[Result], not_run: Mapping[str, str] | None = None) -> str:
    """Return the comment; `not_run` maps the cases that did not run to the reason. Long ones say what they left out."""
    not_run = not_run or {}
    tally = counts(results) + (f", {len(not_run)} not run" if not_run else "")
    rows = [_row(result) for result in results]
    rows += [f"| {_code(case)} | ⏭️ not run | {_plain(reason)} | | | | |" for case, reason in not_run.items()]
    text, left_out = "\n".join((f"### parity: {tally}", "", *_TABLE)) + "\n", 0
    for piece in [*(f"{row}\n" for row in rows), *(_details(r) for r in results if r.verdict != "match")]:
        if len(text) + len(piece) > MAX_CHARACTERS:
            left_out += 1
        else:
            text += piece
    return text + (f"\n_{left_out} rows or details were left out; the report has them all._\n" if left_out else "")


def write_markdown(results: Sequence[Result], path: Path, not_run: Mapping[str, str] | None = None) -> None:
    """Write the comment to `path` atomically."""
    write_text(path, markdown(results, not_run))


def _row(result: Result) -> str:
    first = f"{_code(place(result.first.site, result.first.coords, 70))}" if result.first else ""
    error = _plain(measured(result.first)) if result.first else ""
    culprit = _code(culprit_text(result.culprit, 70)) if result.culprit else ""
    cause = _plain(clip(cause_text(result.causes[0]), 240)) if result.causes else ""
    verdict = f"{_ICONS[result.verdict]} {result.verdict}"
    share = f"{result.coverage.compared}/{result.coverage.reference}"
    return f"| {_code(case_name(result))} | {verdict} | {first} | {error} | {culprit} | {cause} | {share} |"


def _details(result: Result) -> str:
    message = failure_message(result)
    fence = "`" * max(3, _longest_run(message) + 1)
    return f"\n<details><summary>{_plain(case_name(result))}</summary>\n\n{fence}text\n{message}\n{fence}\n</details>\n"


def _code(text: str) -> str:
    """A code span that no backtick or pipe of the text can end (pipes end table cells even inside a span)."""
    line = clean(text).replace("|", "¦")
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def _plain(text: str) -> str:
    """Text in which nothing is HTML, a link, a mention or emphasis."""
    return clean(text).translate(_ESCAPES)


def _longest_run(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest
