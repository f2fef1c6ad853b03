"""Records whose fingerprints a card has begun: nothing waits for one tensor, what was found is fetched for many at once."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from parity.trace import Record, Trace
from parity.trace.fingerprint import Fingerprint, fingerprint


class Sink(Protocol):
    """Where records go besides (or instead of) memory."""

    def write(self, record: Record, tensor: Tensor | None) -> None: ...


class Late:
    """Adds records to a trace and a sink in their order, also where their fingerprints are still being made."""

    def __init__(self, sink: Sink | None) -> None:
        self.sink = sink
        self._batches: dict[Any, Any] = {}  # of a card and stream
        self._waiting: list[tuple[Any, int, Record, Tensor | None]] = []  # batch (None: whole), place in the trace

    def begin(self, value: Tensor, trace: Trace) -> tuple[Fingerprint | None, Any]:
        """Return the fingerprint of `value`, or None and the batch of its card that has begun it."""
        card = card_of(value)
        batch = card.batch_of(value, self._batches) if card is not None else None
        if batch is None:
            return fingerprint(value), None
        if batch.full:
            self.settle(trace)
        batch.add(value)
        return None, batch

    def add(self, trace: Trace, record: Record, tensor: Tensor | None, batch: Any) -> None:
        """Append a record whose fingerprint is whole (no batch), or begun last in `batch`."""
        if batch is not None or (self.sink is not None and self._waiting):
            self._waiting.append((batch, len(trace), record, tensor if self.sink is not None else None))
        elif self.sink is not None:
            self.sink.write(record, tensor)
        trace.add(self._lean(record), tensor if self.sink is None else None)
        if tensor is not None and self.sink is not None and self._waiting:
            self.settle(trace)  # full tensors do not wait: they fill the card

    def settle(self, trace: Trace) -> None:
        """Fetch what the cards have made, complete the records, and write what waited."""
        found = {id(batch): iter(batch.fetch()) for batch in self._batches.values()}
        waiting, self._waiting = self._waiting, []
        for batch, place, record, tensor in waiting:
            if batch is not None:
                record = dataclasses.replace(record, **next(found[id(batch)])._asdict())
                trace.put(place, self._lean(record))
            if self.sink is not None:
                self.sink.write(record, tensor)

    def _lean(self, record: Record) -> Record:
        """Leave the sketch out where the sink has it: 8 kB a record."""
        return dataclasses.replace(record, sketch=None) if self.sink is not None else record


def card_of(value: Tensor) -> ModuleType | None:
    """Return the module of the kernel for the card that holds `value`, or None for what lies elsewhere."""
    return card_pass() if value.is_cuda else None


@functools.cache
def card_pass() -> ModuleType | None:
    """Return the module of the kernel for cards, or None where Triton is not installed or does not work."""
    try:
        return importlib.import_module("parity.trace.card")
    except Exception:  # torch's wheels for cards bring it; others need not
        return None
