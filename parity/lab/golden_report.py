"""What a verified golden says: one line, details, JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parity.boundary.text import one_line
from parity.lab.golden import GoldenReport
from parity.result import plain


def golden_line(report: GoldenReport) -> str:
    """Return the line of one file: ok or FAILED, how many values, the worst of them, relations of the sides."""
    worst = report.worst
    mark = "ok    " if report.ok else "FAILED"
    text = f"{mark} {report.path.name}: {report.system}/{report.entry} ({report.side}), {len(report.checks)} values"
    if worst is None:
        text += ": nothing was compared" + ("" if report.missing else ", the file holds no output and no activation")
    else:
        text += f", worst {one_line(worst.name, 80)}: max abs {worst.absolute:.2e}, rel {worst.relative:.2e}"
    if report.omitted:
        text += f", {len(report.omitted)} omitted with reason"
    if report.relations:
        wrong = [r.stage for r in report.relations if not r.ok]
        equal = [r.stage for r in report.relations if r.ok and r.found == "equal"]
        text += (
            f"; the sides relate as stated at {len(report.relations) - len(wrong)} of {len(report.relations)} stages"
        )
        text += (f", equal bits at {', '.join(equal)}" if equal else "") + (
            f", NOT at {', '.join(wrong)}" if wrong else ""
        )
    return text + (f", {len(report.missing)} NOT PRODUCED" if report.missing else "")


def golden_details(report: GoldenReport) -> Iterator[str]:
    """Yield a line a missing value, a failing value, a relation and a reason for what was left out."""
    if report.unread:
        yield f"not read: {report.unread}"
    yield from (f"not produced: {one_line(name, 120)}" for name in report.missing[:20])
    for check in [c for c in report.checks if not c.ok][:20]:
        name = one_line(check.name, 120)
        yield f"{name}: max abs {check.absolute:.3e}, rel {check.relative:.3e} {check.detail}"
    for r in report.relations:
        yield f"{r.stage}: stated {r.stated}, found {r.found} ({'as stated' if r.ok else 'NOT AS STATED'})"
    for reason in dict.fromkeys(report.omitted.values()):
        yield f"omitted: {sum(r == reason for r in report.omitted.values())} values ({reason})"


def golden_json(report: GoldenReport) -> dict[str, Any]:
    """Return a verified golden as plain JSON values."""
    return plain(  # type: ignore[no-any-return]
        {
            "path": str(report.path),
            "system": report.system,
            "entry": report.entry,
            "side": report.side,
            "ok": report.ok,
            "values": len(report.checks),
            "missing": list(report.missing),
            "omitted": dict(report.omitted),
            "unread": report.unread,
            "failures": [c.__dict__ for c in report.checks if not c.ok],
            "worst": report.worst.__dict__ if report.worst else None,
            "relations": [r.__dict__ for r in report.relations],
        }
    )
