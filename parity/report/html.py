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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from parity.clips.compare import ClipComparison
from parity.clips.frames import Clip
from parity.files import write_text
from parity.report import wording
from parity.report.charts import growth, overview, per_axis
from parity.report.frames import FramesView, frames_view
from parity.report.media import Media
from parity.report.payload import MAX_BYTES, payload
from parity.report.views import Figure, Figures, kv_figure, kv_overview, mask_figure, rope_figure, worst_first
from parity.result import Culprit, Result

MAX_PAGE = 1_950_000  # bytes
LISTED = 200  # divergences, notes, unaligned names: the rest is counted
_VIDEO_TEXT: Mapping[str, str] = {
    "match": "Every frame of the port shows what the reference shows.",
    "diverged": "The port's clip departs from the reference's.",
    "incomparable": "The two clips could not be compared: this is not a pass.",
}


def write_report(result: Result, path: Path, media: Media | None = None) -> None:
    """Write the page of one case (under 2 MB) to `path` atomically."""
    write_text(Path(path), report_html(result, media))


def write_index(results: Sequence[Result], path: Path, not_run: Mapping[str, str] | None = None) -> None:
    """Write the page that lists all cases and links to their reports; `not_run` maps cases left out to the reason."""
    path = Path(path)
    groups = [(r, _link(r.report, path.parent)) for r in results]
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
        page = _render("report.html.j2", **context, table=payload(result.rows, most))
        if len(page.encode()) <= MAX_PAGE:
            break
    return page


def _context(result: Result, media: Media) -> dict[str, Any]:
    """Everything the template of a case shows but the table."""
    frames = _frames(media)
    groups = {
        "cache": ("Cache", _figures(media.kv, kv_figure), kv_overview(media.kv)),
        "positions": ("Positions", _figures(media.rope, rope_figure), Markup("")),
        "masks": ("Masks", _figures(media.masks, mask_figure), Markup("")),
    }
    groups = {key: group for key, group in groups.items() if group[1].drawn}
    context = {
        "title": f"{wording.case_name(result)} · {result.verdict}",
        "result": result,
        "verdict": result.verdict,
        "sentence": wording.VERDICT_TEXT[result.verdict],
        "growth": growth(result.rows),
        "axes": per_axis(result.rows),
        "overview": overview(result.rows),
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
        ("growth", "Growth", bool(context["growth"])),
        *((key, group[0], True) for key, group in context["views"].items()),
        ("frames", "Frames", context["frames"] is not None),
        ("divergences", "Divergences", bool(result.divergences)),
        ("sites", "Sites", bool(result.rows)),
        ("coverage", "Coverage", True),
        ("environment", "Environment", bool(context["environment"]["rows"])),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


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
    return {"rows": rows[:LISTED], "differences": [wording.clip(line, 300) for line in stated][:LISTED]}


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
    script, style = (loader.get_source(environment, name)[0] for name in ("page.js", "page.css"))
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
    words = ("number", "exact", "percent", "clean", "clip", "coords_text", "place", "measured", "element", "cause_text")
    environment.filters |= {name: getattr(wording, name) for name in words}
    environment.globals |= {"times_floor": wording.times_floor, "case_name": wording.case_name, "LISTED": LISTED}
    environment.globals |= {
        "METRIC_TEXT": wording.METRIC_TEXT,
        "coverage_text": wording.coverage_text,
        "INFINITY": math.inf,
    }
    environment.globals |= {"total_seconds": wording.total_seconds}
    return environment
