"""Calls that are left out: the port's call is the reference's next one; what only resembles it stays silent."""

from __future__ import annotations

from collections.abc import Mapping

from recognise import explain, normal, top
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.skipped_calls import HYPOTHESES

CALLS = {0: normal(2, 4, 3), 1: normal(2, 16, seed=1), 2: normal(2, 4, 3, seed=2), 3: normal(2, 4, 3, seed=3)}


def at(site: str, coords: Mapping[str, int]) -> Tensor | None:
    return CALLS.get(coords.get("call", 0)) if site == "act.in.input" else None


def evidence(call: int, port: Tensor, kind: str = "input") -> Evidence:
    coords = {"call": call} if call else {}
    return Evidence(reference=CALLS[call], port=port, site="act.in.input", coords=coords, kind=kind, ref_at=at)


def test_a_call_is_left_out() -> None:
    name, class_id, found = top(evidence(1, CALLS[2].clone()), HYPOTHESES)
    assert (name, class_id) == ("skipped call", "N5")
    assert "leaves out a call of act: its call 1 is the reference's call 2" in found.text
    assert top(evidence(0, CALLS[2].clone()), HYPOTHESES)[2].parameters["left_out"] == 2


def test_other_values_and_earlier_calls_are_not() -> None:
    assert not explain(evidence(1, CALLS[2] * 1.01), HYPOTHESES)
    assert not explain(evidence(2, CALLS[0].clone()), HYPOTHESES)  # an old value: stale, not skipped
    assert not explain(evidence(0, CALLS[2].clone(), kind="kv"), HYPOTHESES)
    assert not explain(evidence(2, CALLS[2].clone()), HYPOTHESES)
