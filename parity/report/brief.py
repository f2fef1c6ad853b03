"""Answers for a reader with little room (a coding agent): one fact a line under keys that stay, the next command last.

A whole answer has at most LINES lines and CHARACTERS characters; what does not fit is counted, never dropped without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from parity.report.wording import (
    case_name,
    clean,
    clip,
    clip_end,
    counts,
    coverage_text,
    lost_isolation,
    measured,
    place,
)
from parity.result import Cause, Result

LINES = 40
CHARACTERS = 2_000
WIDTH = 240  # of one fact
DONE = "nothing to do: every verdict is match"

Facts = Iterable[tuple[str, object]]


def brief(facts: Facts, following: str) -> str:
    """Return `key: value` lines, one a fact (empty ones are left out), then `next: COMMAND`, within the limits."""
    return fitted((f"{key}: {clip_end(clean(value), WIDTH)}" for key, value in facts if clean(value)), following)


def fitted(lines: Iterable[str], following: str) -> str:
    """Return as many lines as fit, how many more there are, and the next command."""
    end = f"next: {clip_end(clean(following), WIDTH)}"
    cut = [clip_end(clean(line), WIDTH) for line in lines]
    most = CHARACTERS - len(end) - len(f"more: {len(cut)} lines left out") - 2
    kept: list[str] = []
    for line in cut:
        if len(kept) == LINES - 2 or sum(map(len, kept)) + len(kept) + len(line) > most:
            break
        kept.append(line)
    more = [f"more: {len(cut) - len(kept)} lines left out"] if len(kept) < len(cut) else []
    return "\n".join([*kept, *more, end])


def brief_result(result: Result, saved: str = "") -> str:
    """Return what one comparison found. saved: where the whole result lies as JSON, which `parity explain` reads."""
    return brief(_facts(result, saved), following(result, saved))


def brief_results(results: Sequence[Result], not_run: Mapping[str, str] | None = None, saved: str = "") -> str:
    """Return what several comparisons found: a tally, then a line for each that is no match; one alone in full."""
    not_run = not_run or {}
    if len(results) == 1 and not not_run:
        return brief_result(results[0], saved)
    wrong = [r for r in results if r.verdict != "match"]
    facts: list[tuple[str, object]] = [("verdict", wrong[0].verdict if wrong else "match" if results else "not run")]
    facts += [("counts", counts(results) + (f", {len(not_run)} not run" if not_run else ""))]
    facts += [(r.verdict, f"{case_name(r)}{_where(r)}") for r in wrong]
    facts += [("not run", f"{case}: {reason}") for case, reason in not_run.items()]
    command = (
        _plain_command(wrong[0]) if wrong else "; ".join(f"parity run {case} --traceback" for case in [*not_run][:1])
    )
    return brief([*facts, ("result", saved)], command or DONE)


def brief_causes(result: Result) -> str:
    """Return every cause of a result with its evidence, the best first."""
    facts: list[tuple[str, object]] = [("verdict", result.verdict), ("case", case_name(result))]
    facts += [("first", place(result.first.site, result.first.coords, 120))] if result.first else []
    for number, cause in enumerate(result.causes, 1):
        facts += [(f"cause {number}", cause.text or cause.name), *((f"{k} {number}", v) for k, v in _evidence(cause))]
    if result.first and not result.causes:
        facts.append(("cause", "unexplained: no hypothesis fits the numbers"))
    facts += [("note", note) for note in result.notes]
    return brief(facts, _after(result) if result.verdict != "match" else DONE)


def following(result: Result, saved: str = "") -> str:
    """Return the command to run after this result."""
    if result.verdict == "match":
        return DONE
    return f"parity explain {saved} --brief" if saved else _after(result)


def _after(result: Result) -> str:
    patch = next((cause.patch for cause in result.causes if cause.patch), None)
    if patch:
        return f"edit {patch.partition(': ')[0]}, then {_plain_command(result)}"
    command, zoom, _ = result.command.partition(" --zoom")
    if zoom and not result.operations and command.startswith("parity "):
        return f"{command} --zoom first --brief"
    return _plain_command(result) or "parity list --brief"


def _plain_command(result: Result) -> str:
    """Return the command of a result without what zooms and draws."""
    command = result.command.partition(" --zoom")[0]
    return f"{command} --brief" if command.startswith("parity ") else result.command


def _where(result: Result) -> str:
    first = f" at {clip(result.first.site, 60)}" if result.first else ""
    return first + (f" [{result.causes[0].class_id}]" if result.causes and result.causes[0].class_id else "")


def _zoomed(result: Result, saved: str) -> Facts:
    """What was asked for first: the operations, those that the other side has not before the others."""
    head = [line for line in result.operations if line[:2] not in ("! ", "= ")]
    yield "verdict", result.verdict
    yield "case", case_name(result)
    yield "first", place(result.first.site, result.first.coords, 120) if result.first else ""
    yield "result", saved
    yield from (("zoom", line) for line in head)
    for mark, key in (("! ", "alone"), ("= ", "equal")):
        yield from ((key, line[2:]) for line in result.operations if line.startswith(mark))


def _facts(result: Result, saved: str) -> Facts:
    if result.operations:
        yield from _zoomed(result, saved)
        return
    yield "verdict", result.verdict
    yield "case", case_name(result)
    if result.first is not None:
        yield "first", place(result.first.site, result.first.coords, 120)
        yield "in the port", result.first.port
        yield "error", measured(result.first)
        yield "detail", result.first.detail
    if result.culprit is not None:
        yield "culprit", result.culprit.module or "(root)"
        yield "operation", result.culprit.operation or ""
        yield "line", result.culprit.source or ""
        yield "code", result.culprit.code or ""
        yield "reference", result.culprit.detail
    others = [c.module for c in result.culprits[1:]]
    yield "also", clip(", ".join(others), 200) if others else ""
    if result.causes:
        yield "cause", result.causes[0].text or result.causes[0].name
        yield from _evidence(result.causes[0])
    elif result.first is not None:
        yield "cause", "unexplained: no hypothesis fits the numbers"
    yield "coverage", coverage_text(result.coverage)
    yield "isolation", lost_isolation(result)
    yield "page", result.report or ""
    yield "result", saved
    for note in result.notes[:4]:
        yield "note", note


def _evidence(cause: Cause) -> Facts:
    yield "class", cause.class_id
    yield "proof", cause.proof
    yield "confidence", f"{cause.confidence:.2f}"
    yield "residual", f"{cause.residual:.3g}"
    yield "patch", cause.patch or ""
