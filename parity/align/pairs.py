"""Pairs of records, with the evidence for each, and what stays alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from parity.trace import Record, Trace
from parity.trace.names import Target


@dataclass(frozen=True)
class Pair:
    """A reference record and its port record; `target` brings the port's tensor to the reference's layout, when that was not done at capture."""

    reference: Record
    port: Record
    how: str = "name"
    target: Target | None = None

    def port_tensor(self, trace: Trace) -> Tensor | None:
        """Return the port's full tensor in the reference's layout, or None."""
        value = trace.tensor(self.port.key)
        if value is None or self.target is None:
            return value
        try:
            return self.target.to_reference(value)
        except Exception:  # the pattern does not fit: let the shapes speak
            return value


@dataclass(frozen=True)
class Alignment:
    """Pairs in the reference's order, and what has no partner.

    missing: reference records whose site the port does have, at other coordinates (a call that did not happen). extra: the same on the port side.
    alone_*: sites that the other side does not have at all. outside: records before the window that the other side's trace recorded.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[Record, ...] = ()
    extra: tuple[tuple[Record, int], ...] = ()  # with the order of the reference record before it
    alone_reference: tuple[str, ...] = ()
    alone_port: tuple[str, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)  # lone sites with a stated reason
    notes: tuple[str, ...] = ()
    outside: frozenset[str] = frozenset()
