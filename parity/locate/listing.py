"""Zoomed in: the operations of both sides up to one record, and which of them give numbers that the other side has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parity.boundary.text import one_line
from parity.capture.operations import Step
from parity.case.index import did_you_mean
from parity.errors import CaseError
from parity.locate.operation import describe_op, unknown_steps

MOST = 120  # operations a side
# The same numbers in another shape.
QUIET = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "clone",
        "detach",
        "alias",
        "_to_copy",
        "lift_fresh",
        "empty",
        "empty_like",
        "new_empty",
        "transpose",
        "permute",
        "t",
    ]
)


def refuse_unknown_site(zoom: str, sites: Sequence[str]) -> None:
    """Raise CaseError where a site is to be looked at that the reference has not."""
    if zoom not in ("", "first") and zoom not in sites:
        raise CaseError(f"zoom: the reference has no site {one_line(repr(zoom), 80)}{did_you_mean(zoom, sites)}")


def listing(key: str, ref: Sequence[Step], port: Sequence[Step], relative: Callable[[str], str]) -> tuple[str, ...]:
    """Return lines: what each side ran from the last agreeing record to `key`, `!` before what the other side has no counterpart of."""
    if not ref and not port:
        return (f"no operation was logged before {key}",)
    head = f"operations up to {key}, in float64 on the reference's values (=: the other side has these numbers, !: it has not)"
    lines = [head]
    for name, own, other in (("reference", ref, port), ("port", port, ref)):
        new = unknown_steps(own, other)
        told = [(number, step) for number, step in enumerate(own) if step.op.name not in QUIET]
        alone = sum(number in new for number, _ in told)
        lines.append(f"{name}: {len(told)} operations, {alone} of them without a counterpart")
        for number, step in told[:MOST]:
            lines.append(f"{'!' if number in new else '='} {describe_op(step.op)} at {relative(step.op.source)}")
        if len(told) > MOST:
            lines.append(f"and {len(told) - MOST} more")
    return tuple(lines)
