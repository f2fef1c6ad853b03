"""The pytest plugin: the `assert_parity` fixture, cases as parametrised tests, reports of what failed.

Options: `--parity-report DIR` writes HTML reports of every result; `--parity-update` rewrites goldens that tests make. A test marked
`@pytest.mark.parity("waypoint")` (or "waypoint/frames", or nothing for every case) runs once for each case, which it gets as the fixture `parity_case`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.case import Case
    from parity.result import Result


@dataclass
class ReportBook:
    """Results of one session; reports are written as they come, the index at the end. test: the id of the test that runs."""

    folder: Path | None
    results: list[Result] = field(default_factory=list)
    test: str = ""
    _seen: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result, media: Any = None) -> Result:
        """Keep a result and write its page when reports were asked for: one a test and assertion."""
        if self.folder is not None:
            from parity.session import write_one

            self._seen[self.test] += 1
            again = f" #{self._seen[self.test]}" if self._seen[self.test] > 1 else ""
            name = self.test if self.test.endswith(result.case) else f"{result.case} in {self.test}"
            page = write_one(replace(result, case=f"{name}{again}"), media, self.folder)
            result = replace(result, report=page.report)
        self.results.append(result)
        return result


_BOOK = pytest.StashKey[ReportBook]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("parity")
    group.addoption("--parity-report", metavar="DIR", default=None, help="write HTML parity reports to DIR")
    group.addoption("--parity-update", action="store_true", help="let tests rewrite the goldens that they own")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and open the report book."""
    config.addinivalue_line(
        "markers", "parity(case): run this test for the parity cases of that name (system or system/case)"
    )
    folder = config.getoption("--parity-report")
    config.stash[_BOOK] = ReportBook(Path(folder) if folder else None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `parity_case` one value for each case that the marker names."""
    from parity.errors import CaseError

    marker = metafunc.definition.get_closest_marker("parity")
    if "parity_case" not in metafunc.fixturenames:
        if marker is not None:
            raise CaseError(
                f"{metafunc.function.__name__} is marked parity but takes no parity_case: no case would run"
            )
        return
    from parity.case.discovery import choose_cases, find_systems
    from parity.case.index import NOTHING

    names = [str(a) for a in marker.args] if marker else []
    cases = choose_cases(find_systems(metafunc.config.rootpath, names=names), names)
    if not cases:
        raise CaseError(f"{metafunc.function.__name__} asks for parity cases, and {NOTHING}")
    metafunc.parametrize("parity_case", cases, ids=[case.label for case in cases])


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """Fixture: `assert_parity(reference, port, inputs)` or `assert_parity(case)`; fails with a message to act on."""
    book = request.config.stash[_BOOK]
    book.test = request.node.nodeid

    def run(reference: Any, port: Any = None, inputs: Any = None, **options: Any) -> Result:
        from parity.case import Case
        from parity.errors import ParityFailure
        from parity.report.text import failure_message

        __tracebackhide__ = True
        if isinstance(reference, Case):
            result = _run_case(reference, book, options)
        else:
            from parity.api import check

            result = book.add(check(reference, port, inputs, label=request.node.name, **options))
        if result.verdict != "match":
            raise ParityFailure(failure_message(result))
        return result

    return run


@pytest.fixture
def parity_update(request: pytest.FixtureRequest) -> bool:
    """Whether `--parity-update` was given: only then may a test change a golden."""
    return bool(request.config.getoption("--parity-update"))


def _run_case(case: Case, book: ReportBook, options: dict[str, Any]) -> Result:
    from parity.pipeline import run_case

    zoom = options.pop("zoom", "")
    result, runs = run_case(case, **options, zoom=zoom or ("first" if book.folder is not None else ""))
    media = None
    if book.folder is not None:
        from parity.report.collect import collect_media

        media = collect_media(case, runs, result)
    result = book.add(result, media)
    return result if zoom else replace(result, operations=())  # the page has them, a message is short


@pytest.hookimpl(hookwrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Write the index of the reports; a worker of xdist hands its results to the process that has them all."""
    yield
    book = session.config.stash.get(_BOOK, None)
    if book is None or book.folder is None or not book.results:
        return
    workeroutput = getattr(session.config, "workeroutput", None)
    if workeroutput is not None:
        short = [replace(r, rows=(), alignment=(), operations=(), environment={}) for r in book.results]
        workeroutput["parity"] = json.dumps([r.to_json() for r in short])
        return
    from parity.report.history import add_history, read_history
    from parity.report.html import write_index

    add_history(book.results, book.folder)
    write_index(book.results, book.folder / "index.html", past=read_history(book.folder))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the results of a worker of xdist."""
    from parity.report.saved import result_from_json

    book = node.config.stash.get(_BOOK, None)
    if book is not None:
        book.results += [result_from_json(raw) for raw in json.loads(node.workeroutput.get("parity", "[]"))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the reports are."""
    book = terminalreporter.config.stash.get(_BOOK, None)
    if book is not None and book.folder is not None and book.results:
        terminalreporter.write_line(f"parity reports: {book.folder / 'index.html'}")
