"""What a notebook shows of a result and of a trace."""

from __future__ import annotations

from markupsafe import Markup, escape

from parity.report.tables import records_table, rows_table
from parity.result import Result
from parity.trace import Trace

SHOWN = 20


def result_html(result: Result) -> str:
    """Return the message, and below it the first rows that are over their floors; every text from outside is escaped."""
    page = Markup("<pre>{}</pre>").format(result.text())
    table = rows_table(result)
    wrong = table[table["diverged"]] if len(table) else table
    if not len(wrong):
        return str(page)
    columns = [
        "site",
        *[c for c in wrong.columns if c.startswith("@")],
        "kind",
        "error",
        "floor",
        "isolated",
        "max_abs",
    ]
    more = f"{len(wrong) - SHOWN} more over their floors: result.to_pandas()" if len(wrong) > SHOWN else ""
    return str(page + Markup(wrong[columns].head(SHOWN).to_html(index=False, escape=True)) + escape(more))


def trace_html(trace: Trace) -> str:
    """Return what made a trace and its first records; every text from outside is escaped."""
    said = trace.manifest
    side = f"{said.side or 'trace'} of {said.system}" if said.system else said.side or "trace"
    state = "" if said.complete else ", incomplete"
    head = Markup("<p>{}: {} records at {} sites{}</p>").format(side, len(trace), len(trace.sites()), state)
    return str(head + Markup(records_table(trace).head(SHOWN).to_html(index=False, escape=True)))
