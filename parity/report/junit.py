"""Results as JUnit XML, which every CI reads. A case that did not run is `skipped`, never passed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from parity.files import write_text
from parity.report.text import failure_message
from parity.report.wording import case_name, clean, measured, place, total_seconds
from parity.result import Result

# XML 1.0 has no way to write these, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(results: Sequence[Result], not_run: Mapping[str, str] | None = None, suite: str = "parity") -> str:
    """Return one test suite as XML; `not_run` maps the cases that did not run to the reason."""
    not_run = not_run or {}
    failures = sum(result.verdict != "match" for result in results)
    totals = {
        "tests": str(len(results) + len(not_run)),
        "failures": str(failures),
        "errors": "0",
        "skipped": str(len(not_run)),
        "time": f"{sum(total_seconds(result) for result in results):.3f}",
    }
    root = ET.Element("testsuites", {"name": suite, **totals})
    parent = ET.SubElement(root, "testsuite", {"name": suite, **totals})
    for result in results:
        _testcase(parent, result)
    for case, reason in not_run.items():
        element = ET.SubElement(parent, "testcase", {"classname": suite, "name": _legal(clean(case)), "time": "0.000"})
        ET.SubElement(element, "skipped", {"message": _legal(f"NOT RUN: {clean(reason)}")})
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def write_junit(results: Sequence[Result], path: Path, not_run: Mapping[str, str] | None = None) -> None:
    """Write the XML to `path` atomically."""
    write_text(path, junit(results, not_run))


def _testcase(parent: ET.Element, result: Result) -> None:
    attributes = {
        "classname": _legal(clean(f"parity.{result.system}" if result.system else "parity")),
        "name": _legal(case_name(result)),
        "time": f"{total_seconds(result):.3f}",
    }
    element = ET.SubElement(parent, "testcase", attributes)
    properties = ET.SubElement(element, "properties")
    coverage = result.coverage
    values = {"compared": coverage.compared, "reference": coverage.reference, "port": coverage.port}
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": f"coverage.{name}", "value": str(value)})
    if result.verdict != "match":
        first = result.first
        where = "" if first is None else f" at {place(first.site, first.coords)}: {measured(first)}"
        failure = ET.SubElement(element, "failure", {"type": result.verdict, "message": _legal(result.verdict + where)})
        failure.text = _legal(failure_message(result))


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
