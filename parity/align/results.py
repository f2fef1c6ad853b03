"""Which part of the port's result is which of the reference's: two results are the same whatever container holds them.

Names of keys and fields count where both sides give names; where one side gives none (a tuple, a bare tensor), the order counts. A
container of one part is its part. A list of equal shapes is the tensor that stacking it gives, where the other side has that tensor; a batch
of one sample is that sample.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from parity.trace import Record, Trace

ROLE = "return"


@dataclass
class _Node:
    """A part of a result: its record, or the parts inside it by name."""

    record: Record | None = None
    parts: dict[str, _Node] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        return any(not name.isdecimal() for name in self.parts)


def fit_results(reference: Trace, port: Trace, relax: Collection[str] = ()) -> Trace:
    """Return the port's trace with the parts of its result under the sites that the reference has for them."""
    left, right = _tree(reference), _tree(port)
    renamed: dict[str, str] = {}
    stacked: dict[str, list[str]] = {}
    opened: set[str] = set()
    _pair(left, right, relax, renamed, stacked, opened)
    if not stacked and not opened and all(key == site for key, site in renamed.items()):
        return port
    return _rebuilt(port, renamed, stacked, opened)


def _tree(trace: Trace) -> _Node:
    root = _Node()
    for record in trace:
        if record.role == ROLE:
            node = root
            for name in record.site.split(".")[1:]:
                node = node.parts.setdefault(name, _Node())
            node.record = record
    return root


def _pair(
    left: _Node,
    right: _Node,
    relax: Collection[str],
    renamed: dict[str, str],
    stacked: dict[str, list[str]],
    opened: set[str],
) -> None:
    if left.record is not None and right.record is not None:
        renamed[right.record.site] = left.record.site
        if left.record.shape and right.record.shape == (1, *left.record.shape):
            opened.add(right.record.site)  # a batch of one, where the reference gives its one sample
        elif right.record.shape and left.record.shape == (1, *right.record.shape):
            stacked[left.record.site] = [right.record.site]
        return
    if left.record is not None and right.parts and not right.named:
        rows = [part.record for part in right.parts.values()]
        if _stack_of(rows) == left.record.shape:
            stacked[left.record.site] = [r.site for r in rows if r is not None]
            return
    if len(left.parts) == 1 and len(right.parts) != 1:
        pairs = [(next(iter(left.parts.values())), right)]
    elif len(right.parts) == 1 and len(left.parts) != 1:
        pairs = [(left, next(iter(right.parts.values())))]
    else:
        pairs = _pairs(left, right, relax)
    for a, b in pairs:
        _pair(a, b, relax, renamed, stacked, opened)


def _pairs(left: _Node, right: _Node, relax: Collection[str]) -> list[tuple[_Node, _Node]]:
    if not (left.named and right.named):
        return list(zip(left.parts.values(), right.parts.values(), strict=False))
    found = [(part, right.parts[name]) for name, part in left.parts.items() if name in right.parts]
    if "names" in relax:
        rest = [n for n in left.parts if n not in right.parts], [n for n in right.parts if n not in left.parts]
        found += [(left.parts[a], right.parts[b]) for a, b in zip(*rest, strict=False)]
    return found


def _stack_of(rows: Sequence[Record | None]) -> tuple[int, ...] | None:
    """Return the shape of the stacked rows, when they can be stacked."""
    shapes = {row.shape if row is not None else None for row in rows}
    shape = next(iter(shapes))
    return (len(rows), *shape) if len(shapes) == 1 and shape is not None else None


def _rebuilt(
    port: Trace, renamed: Mapping[str, str], stacked: Mapping[str, Sequence[str]], opened: Collection[str]
) -> Trace:
    first = {sites[0]: (site, sites) for site, sites in stacked.items()}
    rest = {site for sites in stacked.values() for site in sites[1:]}
    taken = set(renamed.values()) | set(stacked)
    made = Trace(manifest=port.manifest)
    for record in port:
        value = port.tensor(record.key)
        if record.role != ROLE:
            made.add(record, value)
        elif record.site in first:
            site, sites = first[record.site]
            rows = [port.tensor(s) for s in sites]
            whole = torch.stack(rows) if all(r is not None for r in rows) else None  # type: ignore[arg-type]
            shape = (len(sites), *record.shape)
            made.add(
                replace(record, site=site, origin=record.site, shape=shape, stats=None, digest="", sketch=None), whole
            )
        elif record.site not in rest:
            site = renamed.get(record.site, record.site)
            if record.site not in renamed and site in taken:
                site = f"{site} (port)"
            if record.site in opened:
                value = None if value is None else value[0]
                record = replace(record, shape=record.shape[1:])
            made.add(record if site == record.site else replace(record, site=site, origin=record.site), value)
    return made
