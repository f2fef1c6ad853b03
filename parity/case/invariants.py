"""What must hold of a run whatever the numbers are: declared beside a case, judged on the port's trace, also without a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parity.trace import Record, Trace


@dataclass(frozen=True)
class Breach:
    """One place where an invariant does not hold: the record, the first element, its value, and by how much it is off."""

    record: Record
    index: tuple[int, ...]
    value: float
    amount: float
    detail: str = ""


@dataclass(frozen=True)
class Invariant:
    """A law of a run. `breaches(trace)` yields the places that break it, in order of execution; nothing where the trace has no such site.

    sites: regular expressions of the records it speaks of, one of which must be there for the law to count as checked.
    """

    name: str
    text: str
    breaches: Callable[[Trace], Iterable[Breach]]
    sites: tuple[str, ...] = ()


def records(trace: Trace, pattern: str) -> Iterator[tuple[Record, Tensor]]:
    """Yield the records whose site matches (the whole site), with their tensors."""
    import re

    sought = re.compile(pattern)
    for record in trace:
        if sought.fullmatch(record.site):
            value = trace.tensor(record.key)
            if value is not None:
                yield record, value


def beside(trace: Trace, record: Record, site: str) -> Tensor | None:
    """Return another site's tensor of the same moment (the same coordinates)."""
    return trace.at(site, record.coords)


def breach(
    record: Record, value: Tensor, wrong: Tensor, amount: Tensor | None = None, detail: str = ""
) -> list[Breach]:
    """Return the first element of `value` where `wrong` is true, as a breach; an empty list where it never is."""
    if not bool(wrong.any()):
        return []
    first = int(wrong.flatten().to(torch.uint8).argmax())
    index = tuple(int(i) for i in np.unravel_index(first, tuple(wrong.shape))) if wrong.dim() else ()
    shown = float(value.expand(wrong.shape)[index]) if value.dim() <= wrong.dim() else float("nan")
    worst = 1.0 if amount is None else float(amount.expand(wrong.shape)[wrong].abs().max())
    return [Breach(record, index, shown, worst, detail)]
