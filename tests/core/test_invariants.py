"""Declared invariants: judged on a trace, placed by coordinates, void where the reference breaks them too."""

import pytest
import torch

from parity.case.invariants import Invariant, breach, records
from parity.compare.invariants import broken, checked
from parity.errors import CaseError
from parity.trace import Record, Trace


def trace_of(*values):
    trace = Trace()
    for order, value in enumerate(values):
        record = Record(
            site="x", coords={"step": order}, kind="activation", order=order, shape=tuple(value.shape), dtype="float32"
        )
        trace.add(record, value)
    return trace


def positive(trace):
    for record, value in records(trace, "x"):
        yield from breach(record, value, value <= 0, value.abs())


LAW = Invariant("positive", "x is above 0", positive, ("x",))


def test_the_first_breach_is_placed():
    trace = trace_of(torch.ones(2, 3), torch.tensor([[1.0, 2.0], [3.0, -4.0]]), -torch.ones(2))
    (found,), notes = broken((LAW,), trace)
    assert (found.site, found.coords, found.index) == ("x", {"step": 1}, (1, 1))
    assert (found.metric, found.tier, found.port_value, found.error) == ("invariant", "invariant", -4.0, 4.0)
    assert "x is above 0" in found.detail
    assert not notes
    assert checked((LAW,), trace) == 3


def test_a_law_that_holds_says_nothing():
    assert broken((LAW,), trace_of(torch.ones(3))) == ([], [])


def test_a_law_that_the_reference_breaks_is_a_note():
    bad = trace_of(-torch.ones(3))
    found, notes = broken((LAW,), bad, bad)
    assert not found
    assert "does not hold on the reference" in notes[0]


def test_a_law_that_cannot_be_evaluated_is_one_clear_line():
    law = Invariant("odd", "", lambda trace: [][0])
    with pytest.raises(CaseError, match="invariant 'odd' cannot be evaluated"):
        broken((law,), trace_of(torch.ones(1)))
