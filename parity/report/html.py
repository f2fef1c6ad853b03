"""Reports as HTML: one file each that needs no network, no other file and no script to be read.

Every value passes jinja2's autoescape; the only text that does not is drawn by `svg`, `pixels` and the templates here.
The page forbids all sources but itself (content security policy with the hash of its one script), so that even a
mistake in escaping could not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from parity.clips.compare import ClipComparison
from parity.clips.frames import Clip
from parity.files import write_text
from parity.report import wording
from parity.report.charts import growth, per_axis
from parity.report.frames import FramesView, frames_view
from parity.report.history import Past
from parity.report.media import Media, Source
from parity.report.operations import operations_of
from parity.report.pairs import pair_figure
from parity.report.payload import MAX_BYTES, judged, packed_values, payload
from parity.report.sources import places, reference_place
from parity.report.views import Figure, Figures, kv_figure, kv_overview, mask_figure, rope_figure, worst_first
from parity.result import Culprit, Result

MAX_PAGE = 4_900_000  # bytes
LISTED = 200  # notes, unaligned names, lines of the environment: the rest is counted
SCRIPTS = ("base.js", "frames.js", "map.js", "table.js", "panel.js", "sites.js")
_VIDEO_TEXT: Mapping[str, str] = {
    "match": "Every frame of the port shows what the reference shows.",
    "diverged": "The port's clip departs from the reference's.",
    "incomparable": "The two clips could not be compared: this is not a pass.",
}


def write_report(result: Result, path: Path, media: Media | None = None) -> None:
    """Write the page of one case (under 5 MB) to `path` atomically."""
    write_text(Path(path), report_html(result, media))


def write_index(
    results: Sequence[Result],
    path: Path,
    not_run: Mapping[str, str] | None = None,
    past: Mapping[str, Sequence[Past]] | None = None,
) -> None:
    """Write the page that lists all cases and links to their reports.

    not_run: cases left out and the reason. past: earlier runs by the name of the case, the newest last.
    """
    path = Path(path)
    groups = [(r, _link(r.report, path.parent), (past or {}).get(wording.case_name(r), ())) for r in results]
    page = _render(
        "index.html.j2",
        title="parity",
        groups=groups,
        not_run=dict(not_run or {}),
        tally=wording.counts(results),
        verdict=_overall(results),
        seconds=sum(wording.total_seconds(result) for result in results),
        nav=(),
    )
    write_text(path, page)


def write_video_report(comparison: ClipComparison, a: Clip, b: Clip, path: Path) -> None:
    """Write the page of a comparison of two clips; `a` is the reference."""
    nav = [("frames", "Frames"), ("clips", "Clips")]
    page = _render(
        "video.html.j2",
        title="parity video",
        comparison=comparison,
        clips=(("reference", a), ("port", b)),
        frames=frames_view(a, b, comparison),
        verdict=comparison.verdict,
        sentence=_VIDEO_TEXT[comparison.verdict],
        nav=nav,
    )
    write_text(Path(path), page)


def report_html(result: Result, media: Media | None = None) -> str:
    """Return the page of one case."""
    context = _context(result, media or Media())
    page = ""
    for most in (MAX_BYTES, MAX_BYTES // 3, MAX_BYTES // 20):
        table = payload(result.rows, result.divergences, result.first, most)
        page = _render("report.html.j2", **context, table=table, bare=media is None)
        if len(page.encode()) <= MAX_PAGE:
            break
    return page


def _context(result: Result, media: Media) -> dict[str, Any]:
    """Everything the template of a case shows but the table."""
    frames = _frames(media)
    groups = {
        "cache": ("Cache", _figures(media.kv, kv_figure), kv_overview(media.kv)),
        "pairs": ("Rotated pairs", _figures(media.pairs, pair_figure), Markup("")),
        "positions": ("Positions", _figures(media.rope, rope_figure), Markup("")),
        "masks": ("Masks", _figures(media.masks, mask_figure), Markup("")),
    }
    groups = {key: group for key, group in groups.items() if group[1].drawn}
    rows = judged(result.rows, result.divergences)
    context = {
        "title": f"{wording.case_name(result)} · {result.verdict}",
        "result": result,
        "verdict": result.verdict,
        "sentence": wording.VERDICT_TEXT[result.verdict],
        "growth": growth(rows),
        "axes": per_axis(rows),
        "nearest": wording.nearest(result.rows),
        "answer": _answer(result),
        "sources": _sources(result, media.sources),
        "operations": operations_of(result),
        "values": packed_values(media.values),
        "environment": _environment(result.environment),
        "culprits": _by_line(result),
        "frames": frames,
        "views": groups,
        "seconds": wording.total_seconds(result),
    }
    return {**context, "nav": _nav(result, context)}


def _nav(result: Result, context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors of the sections that the page has."""
    sections = [  # in the order of the page
        ("first", "First", result.first is not None),
        ("causes", "Causes", bool(result.causes) or result.first is not None),
        ("operations", "Operations", context["operations"] is not None),
        ("sites", "Sites", bool(result.rows or result.divergences)),
        ("growth", "Growth", bool(context["growth"])),
        *((key, group[0], True) for key, group in context["views"].items()),
        ("frames", "Frames", context["frames"] is not None),
        ("coverage", "Coverage", True),
        ("environment", "Environment", bool(context["environment"]["rows"])),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def _answer(result: Result) -> dict[str, str]:
    """The line to change for the head of the page: where it is, what it says, and what it should say or what the reference says."""
    culprit = result.culprit or Culprit("")
    top = result.causes[0] if result.causes else None
    patched = re.fullmatch(r"(.+?:\d+): (.*) → (.*)", top.patch or "", re.S) if top is not None else None
    if patched is not None:
        return {"place": patched[1], "code": patched[2], "other": "change it to", "after": patched[3], "change": "yes"}
    answer = {"place": culprit.source or "", "code": culprit.code or "", "other": "", "after": ""}
    place, code = reference_place(culprit.detail)
    same = culprit.operation and f" {culprit.operation.partition('(')[0]}(" in f" {culprit.detail}"
    return (
        {**answer, "other": f"the same operation in the reference, {place}", "after": code} if same and code else answer
    )


def _sources(result: Result, known: Mapping[str, Source]) -> list[tuple[str, Source]]:
    """The lines around the port's line and around the reference's, those of the first culprit alone."""
    if result.culprit is None:
        return []
    own = list(places(replace(result, culprits=())))
    sides = [("port" if place == result.culprit.source else "reference", known.get(place)) for place in own[:2]]
    return [(side, source) for side, source in sides if source is not None]


def _by_line(result: Result) -> list[tuple[Culprit, list[str]]]:
    """The first culprit, then the others; modules that depart at one source line make one entry."""
    culprits = dict.fromkeys(c.module for c in result.culprits)
    found: dict[object, tuple[Culprit, list[str]]] = {}
    for culprit in (*((result.culprit,) if result.culprit else ()), *result.culprits):
        key = (culprit.operation, culprit.source) if culprit.source else culprit.module
        entry = found.setdefault(key, (culprit, []))
        if culprit.module != entry[0].module and culprit.module in culprits:
            entry[1].append(culprit.module)
            del culprits[culprit.module]
    return list(found.values())


def _figures(views: Sequence[Any], make: Callable[[Any], Figure]) -> Figures:
    return worst_first([make(view) for view in views])


def _frames(media: Media) -> FramesView | None:
    if media.frames_reference is None or media.frames_port is None:
        return None
    return frames_view(Clip(media.frames_reference, media.fps), Clip(media.frames_port, media.fps))


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides' entries line by line; those that differ first."""
    sides = [_flat(environment.get(side) or {}) for side in ("reference", "port")]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    rows = [(name, sides[0].get(name, "–"), sides[1].get(name, "–")) for name in names]
    rows.sort(key=lambda row: row[1] == row[2])
    stated = environment.get("differences") or ()
    differences = [wording.clip(line, 300) for line in stated]
    return {"rows": rows[:LISTED], "differences": differences[:LISTED], "more": max(0, len(rows) - LISTED)}


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b` -> text."""
    if not isinstance(values, Mapping):
        return {prefix: wording.clip(values, 200)}
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}.{wording.clean(name)}" if prefix else wording.clean(name))
    return found


def _overall(results: Sequence[Result]) -> str:
    """The verdict that the index wears: the worst of its cases; nothing compared is no match."""
    worst = [
        verdict for verdict in ("diverged", "incomparable", "incomplete") if any(r.verdict == verdict for r in results)
    ]
    return worst[0] if worst else "match" if results else "incomparable"


def _link(report: str | None, folder: Path) -> str:
    """A relative, quoted link: a path from a result cannot become a `javascript:` address."""
    if not report:
        return ""
    relative = os.path.relpath(Path(report).absolute(), folder.absolute())
    return "./" + quote(Path(relative).as_posix())


def _render(template: str, **context: Any) -> str:
    environment = _templates()
    loader = environment.loader
    assert isinstance(loader, PackageLoader)
    script = "".join(loader.get_source(environment, name)[0] for name in SCRIPTS)
    style = loader.get_source(environment, "page.css")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    # Both are files of this package, not data: they are the only text that is not escaped.
    page = environment.get_template(template).render(
        script=Markup(script), style=Markup(style), digest=digest, **context
    )
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _templates() -> Environment:
    """Templates compile once a process."""
    environment = Environment(
        loader=PackageLoader("parity.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    words = ("number", "exact", "percent", "clean", "clip", "coords_text", "place", "measured", "spaced", "near")
    environment.filters |= {name: getattr(wording, name) for name in words}
    environment.globals |= {"times_floor": wording.times_floor, "case_name": wording.case_name, "LISTED": LISTED}
    environment.globals |= {
        "METRIC_TEXT": wording.METRIC_TEXT,
        "coverage_text": wording.coverage_text,
        "INFINITY": math.inf,
    }
    environment.globals |= {"total_seconds": wording.total_seconds, "nearest": wording.nearest, "apart": wording.apart}
    environment.globals |= {"PROOF_TEXT": wording.PROOF_TEXT}
    return environment
