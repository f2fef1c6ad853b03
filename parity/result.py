"""What a comparison found: the record that is printed, written as JSON and rendered as HTML. It decides nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas

Verdict = Literal["match", "diverged", "incomparable", "incomplete"]

EXIT_STATUS: Mapping[str, int] = {"match": 0, "diverged": 1, "incomparable": 1, "incomplete": 1}


@dataclass(frozen=True)
class Divergence:
    """A record whose error is over its floor, or that is missing, of another shape or dtype, or not finite.

    `metric` names what `error` and `floor` measure: `rel_l2`, `max_abs`, `mismatches` (integers), `shape`, `missing`,
    `extra`, `nonfinite`, `bitwise`. `index` is the position of the worst element in the reference's layout, with both values.
    `tier` says which comparison saw it: `run` (as deployed), `isolation` (upcast, on the reference's values), `static`
    (weights, buffers, tables).
    """

    site: str
    coords: Mapping[str, int]
    kind: str
    metric: str
    error: float
    floor: float
    order: int = -1
    tier: str = "run"
    module: str = ""
    detail: str = ""
    index: tuple[int, ...] | None = None
    reference_value: float | None = None
    port_value: float | None = None
    shape: tuple[int, ...] = ()
    locality: tuple[str, ...] = ()
    port: str = ""  # the site's name in the port, where it has another one

    @cached_property
    def key(self) -> str:
        return format_key(self.site, self.coords)


@dataclass(frozen=True)
class Culprit:
    """The innermost module with agreeing inputs and a diverging output; then its first unmatched operation, with its source line."""

    module: str
    operation: str | None = None
    source: str | None = None  # "path/file.py:123"
    code: str | None = None  # the source line itself
    detail: str = ""  # e.g. the reference's counterpart of the operation
    site: str = ""
    coords: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cause:
    """A hypothesis that explains the difference. `class_id` is the id of the bug class ("P1"); `residual` is the share of the
    difference that it leaves unexplained (L2, 0 = explains all); `confidence` is in [0, 1]: the share of causes with this `score` (the
    test's own, before calibration) that were right on the gauntlet."""

    name: str
    class_id: str
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    residual: float = 0.0
    confidence: float = 0.0
    site: str = ""
    score: float = 0.0
    proof: str = "identity"  # verified | replayed | congruent | identity | hint
    patch: str | None = None  # `file:line: before → after`, where it can be said


@dataclass(frozen=True)
class Coverage:
    """How much was compared, on each side; what was left out."""

    compared: int
    reference: int
    port: int
    unaligned_reference: tuple[str, ...] = ()
    unaligned_port: tuple[str, ...] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)  # compared records by kind


@dataclass(frozen=True)
class Row:
    """One compared record, in the reference's order: the numbers that tables and plots show."""

    site: str
    coords: Mapping[str, int]
    kind: str
    order: int
    error: float  # relative L2 (mismatching share for integers); nan when it could not be measured
    floor: float
    max_abs: float = math.nan
    cosine: float = math.nan
    sqnr_db: float = math.nan
    ulp: float = math.nan
    over: float = 0.0  # share of elements over tolerance
    bitwise: bool = False
    nonfinite: tuple[int, int] = (0, 0)  # reference, port
    dtype: tuple[str, str] = ("", "")
    shape: tuple[int, ...] = ()
    how: str = "name"  # how the pair was aligned
    precise: float = math.nan  # the reference's own error against its higher-precision run
    isolated: float = math.nan  # error of this site alone, in isolation
    diverged: bool = False
    estimated: bool = False  # measured from sketches
    port: str = ""  # the site's name in the port, where it has another one

    @cached_property
    def key(self) -> str:
        return format_key(self.site, self.coords)


@dataclass(frozen=True, repr=False)
class Result:
    """The outcome of one comparison. Fields as in the JSON contract, further ones for the report."""

    verdict: Verdict
    first: Divergence | None
    culprit: Culprit | None
    causes: tuple[Cause, ...]
    coverage: Coverage
    divergences: tuple[Divergence, ...] = ()
    culprits: tuple[Culprit, ...] = ()  # all independent ones that isolation found
    rows: tuple[Row, ...] = ()
    environment: Mapping[str, Any] = field(
        default_factory=dict
    )  # {"reference": {...}, "port": {...}, "differences": [...]}
    notes: tuple[str, ...] = ()  # e.g. "the order of records was assumed", benign permutations, accepted quirks
    case: str = ""
    system: str = ""
    fault: str | None = None
    variation: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # per stage
    command: str = ""  # how to re-run zoomed in
    operations: tuple[str, ...] = ()  # zoomed in: what both sides ran up to one record, a line each
    alignment: tuple[Mapping[str, Any], ...] = ()  # every pair of sites, with its evidence
    # How far each site could be judged alone: {"level": "full" | "partial" | "none", "reason", "sites": [...]}
    isolation: Mapping[str, Any] = field(default_factory=dict)
    caught: tuple[str, ...] = ()  # exceptions on the way: hypotheses that raised, runs that failed
    report: str | None = None  # path of the HTML report once it is written

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.verdict]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        from parity.report.wording import headline

        return f"<{headline(self, 200)}>"

    def _repr_html_(self) -> str:
        """Show the message in a notebook, the table of what is over its floor below it."""
        from parity.report.notebook import result_html

        return result_html(self)

    def text(self) -> str:
        """Return the message that `assert_parity` fails with: at most 40 lines of 120 columns."""
        from parity.report.text import failure_message

        return failure_message(self)

    def html(self, path: str | Path) -> Path:
        """Write the HTML report to `path` atomically; return the path."""
        from parity.report.html import write_report

        write_report(self, Path(path))
        return Path(path)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a table: one compared record each, in the reference's order; coordinates are columns `@axis`."""
        from parity.report.tables import rows_table

        return rows_table(self)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values (non-finite floats become strings)."""
        return _plain(dataclasses.asdict(self))  # type: ignore[no-any-return]

    def write_json(self, path: Path) -> None:
        """Write the result to `path` atomically."""
        from parity.files import write_text

        write_text(Path(path), json.dumps(self.to_json(), indent=1, sort_keys=False) + "\n")


def format_key(site: str, coords: Mapping[str, int]) -> str:
    """Return `site@axis=i,axis=j`, the name of a record in a plain trace."""
    return f"{site}@{','.join(f'{axis}={index}' for axis, index in coords.items())}" if coords else site


def parse_key(key: str) -> tuple[str, dict[str, int]]:
    """Split `site@axis=i,axis=j` into site and coordinates; a malformed tail belongs to the site."""
    site, at, tail = key.rpartition("@")
    if not at:
        return key, {}
    coords: dict[str, int] = {}
    for part in tail.split(","):
        axis, equals, index = part.partition("=")
        if not equals or not axis or axis in coords or not index.removeprefix("-").isdecimal() or len(index) > 18:
            return key, {}
        coords[axis] = int(index)
    return site, coords


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)
