"""The words and numbers that every rendering shares, so that a site, an error or a cause reads the same everywhere."""

from __future__ import annotations

import math
import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from parity.result import Cause, Coverage, Culprit, Divergence, Result, Row

VERDICT_TEXT: Mapping[str, str] = {
    "match": "The port computes what the reference computes, within its floors.",
    "diverged": "The port departs from the reference.",
    "incomparable": "The two runs could not be compared: this is not a pass.",
    "incomplete": "Not everything could be compared: this is not a pass.",
}
METRIC_TEXT: Mapping[str, str] = {
    "rel_l2": "relative L2",
    "max_abs": "max abs",
    "mismatches": "mismatching values",
    "shape": "shape",
    "missing": "missing in the port",
    "extra": "only in the port",
    "nonfinite": "non-finite values",
    "bitwise": "bits",
}

PROOF_TEXT: Mapping[str, str] = {
    "verified": "with this undone, everything matches",
    "replayed": "replayed on the reference's values",
    "congruent": "both sides' operations correspond but for this",
    "identity": "the numbers agree with it",
    "hint": "a hint",
}


def number(value: float) -> str:
    """Three significant digits; `nan` and `inf` stay readable."""
    if value == 0:
        return "0"
    return f"{value:.3g}"


def exact(value: float | None) -> str:
    """Nine significant digits, enough to tell any two float32 values apart."""
    return "?" if value is None else f"{value:.9g}"


def times_floor(error: float, floor: float) -> str:
    """How far an error is over its floor, `412x`; empty where that says nothing (no floor, no number)."""
    if not (math.isfinite(error) and math.isfinite(floor)) or floor <= 0 or error <= 0:
        return ""
    ratio = error / floor
    return f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:,.0f}x" if ratio < 1e7 else f"{ratio:.1e}x"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage; small ones are not rounded to zero, nor almost all to all."""
    if share == 0 or 0.1 <= share <= 0.99 or share >= 1:
        return f"{share:.0%}"
    return "<0.01%" if 0 < share < 1e-4 else f"{share:.1%}" if 0.01 <= share < 0.1 else f"{share:.2%}"


def clean(text: object) -> str:
    """One line without control, surrogate or bidirectional characters: names come from files that anybody may write."""
    words = " ".join(str(text).split())
    if words.isprintable():
        return words
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in words)


def spaced(text: object, width: int) -> str:
    """A line of source code, its indentation kept, cut at the end."""
    line = str(text).expandtabs(4)
    return clip_end(" " * (len(line) - len(line.lstrip(" "))) + clean(line), width)


def near(text: object) -> str:
    """A text with the paths below the working folder as relative ones."""
    return clean(text).replace(os.getcwd() + os.sep, "")


def clip(text: object, width: int) -> str:
    """Clean and cut in the middle, because both ends of a dotted name identify it."""
    line = clean(text)
    if len(line) <= width:
        return line
    head = (width - 1) // 2
    return f"{line[:head]}…{line[len(line) - (width - 1 - head) :]}"


def coords_text(coords: Mapping[str, int]) -> str:
    """`frame=5, step=2`; empty without coordinates."""
    return ", ".join(f"{clean(axis)}={index}" for axis, index in coords.items())


def place(site: str, coords: Mapping[str, int], width: int = 200) -> str:
    """`blocks.3.attn.q_rope @ frame=5, step=2`."""
    where = coords_text(coords)
    return clip(site, width) + (f" @ {clip(where, width)}" if where else "")


def case_name(result: Result) -> str:
    """System and case, then the fault or the variation that was switched on."""
    parts = [part for part in (result.system, result.case) if part]
    if len(parts) == 2 and (result.case == result.system or result.case.startswith(f"{result.system}/")):
        parts = parts[1:]
    extra = [f"{word}={value}" for word, value in (("fault", result.fault), ("variation", result.variation)) if value]
    return clean("/".join(parts) or "comparison") + (f" [{clean(', '.join(extra))}]" if extra else "")


def headline(result: Result, width: int) -> str:
    """`parity DIVERGED: waypoint/frames at blocks.0.attn.q_rope: rotary pairs are halves [P1]`: all that fits into a line."""
    text = f"parity {result.verdict.upper()}: {case_name(result)}"
    if result.first is not None:
        text += f" at {clip(result.first.site, 60)}"
    if result.causes:
        top = result.causes[0]
        said = "" if top.name == "edit" else f": {clip(top.name, 60)}"  # an edit's sentence is too long for a line
        text += said + (f" [{clean(top.class_id)}]" if top.class_id else "")
    return clip_end(text, width)


def lost_isolation(result: Result) -> str:
    """Say what could not be judged alone, `partial, 3 sites not judged alone: ...`; empty where all was, or where nobody asked."""
    level, reason = str(result.isolation.get("level", "full")), clean(result.isolation.get("reason", ""))
    if level == "full" or not reason or reason == "not asked for":
        return ""
    count = result.isolation.get("count", 0)
    return f"{clean(level)}{f', {count} sites not judged alone' if count else ''}: {reason}"


def measured(divergence: Divergence) -> str:
    """`relative L2 0.031, floor 4e-06 (7,750x)`, or what else made the record diverge."""
    name = METRIC_TEXT.get(divergence.metric, divergence.metric)
    if divergence.metric in ("shape", "missing", "extra"):
        return name
    over = times_floor(divergence.error, divergence.floor)
    return f"{clean(name)} {number(divergence.error)}, floor {number(divergence.floor)}" + (
        f" ({over})" if over else ""
    )


def apart(divergence: Divergence) -> str:
    """What the first divergence is, in few words: `[2] → [3]` for a shape, `missing in the port`, else the error."""
    if divergence.metric in ("missing", "extra"):
        return METRIC_TEXT[divergence.metric]
    shapes = re.findall(r"\[[\d, ]*\]", divergence.detail) if divergence.metric == "shape" else []
    if len(shapes) >= 2:
        return f"{shapes[0]} → {shapes[1]}"
    return "another shape" if divergence.metric == "shape" else number(divergence.error)


def nearest(rows: Sequence[Row]) -> tuple[Row, str] | None:
    """The row within its floor whose error comes nearest to it, and the ratio; None where nothing was measured."""
    known = [row for row in rows if row.floor > 0 and math.isfinite(row.error) and not row.diverged]
    if not known:
        return None
    worst = max(known, key=lambda row: row.error / row.floor)
    return worst, f"{worst.error / worst.floor:.3g}x"


def element(divergence: Divergence) -> str:
    """`[0, 5, 12]  reference 0.5  port -0.25`, the worst element; empty when no element was looked at."""
    if divergence.index is None:
        return ""
    index = f"[{', '.join(map(str, divergence.index))}]"
    of = f" of [{', '.join(map(str, divergence.shape))}]" if divergence.shape else ""
    return f"{index}{of}  reference {exact(divergence.reference_value)}  port {exact(divergence.port_value)}"


def culprit_text(culprit: Culprit, width: int = 200) -> str:
    """`blocks.3.attn, operation aten.cat, at model.py:41`."""
    parts = [clip(culprit.module or "(root)", width)]
    if culprit.operation:
        parts.append(f"operation {clip(culprit.operation, width)}")
    if culprit.source:
        parts.append(f"at {clean(culprit.source)}")  # a place to go to is never cut
    return ", ".join(parts)


def cause_text(cause: Cause) -> str:
    """The sentence of a cause with class, confidence and what it leaves unexplained."""
    sentence = clean(cause.text) or clean(cause.name)
    class_id = f"{clean(cause.class_id)}, " if cause.class_id else ""
    return f"{sentence} [{class_id}confidence {cause.confidence:.2f}, leaves {percent(cause.residual)}]"


def coverage_text(coverage: Coverage) -> str:
    """`412 compared, of 420 in the reference and 433 in the port`."""
    return f"{coverage.compared} compared, of {coverage.reference} in the reference and {coverage.port} in the port"


def some(names: Iterable[str], limit: int, width: int = 60) -> str:
    """The first `limit` names, then how many more there are."""
    known = list(names)
    shown = ", ".join(clip(name, width) for name in known[:limit])
    return shown + (f" and {len(known) - limit} more" if len(known) > limit else "")


def total_seconds(result: Result) -> float:
    """Seconds of all stages; an entry `total` is believed."""
    return result.seconds["total"] if "total" in result.seconds else sum(result.seconds.values())


def wrap(text: str, width: int, limit: int) -> list[str]:
    """Wrap to at most `limit` lines of `width`; what does not fit ends in an ellipsis."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], clip_end(" ".join(lines[limit - 1 :]), width)]
    return lines


def clip_end(text: str, width: int) -> str:
    """Cut at the end."""
    return text if len(text) <= width else text[: width - 1] + "…"


def counts(results: Sequence[Result]) -> str:
    """`12 match, 1 diverged`; verdicts that did not occur are left out."""
    tally: dict[str, int] = {}
    for result in results:
        tally[result.verdict] = tally.get(result.verdict, 0) + 1
    return ", ".join(f"{tally[verdict]} {verdict}" for verdict in VERDICT_TEXT if verdict in tally) or "no results"
