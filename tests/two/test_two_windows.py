"""Traces of a window of the run: what is there is judged, the rest is coverage."""

from __future__ import annotations

import pytest
import torch

import parity
from parity.trace import MemorySource, Record, Trace

SITES = ("embed", "block.norm", "block.mlp", "block", "out")


def run(frames: range, late: dict[str, int] | None = None, wrong_from: int = 99) -> Trace:
    """A run over frames; late: sites that are recorded from a frame on only. wrong_from: the frame from which block.mlp is off."""
    records, values = [], {}
    for frame in frames:
        for i, site in enumerate(SITES):
            if frame < (late or {}).get(site, 0):
                continue
            value = torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * frame + i))
            value = value * 1.5 if frame >= wrong_from and i >= 2 else value
            record = Record(site, {"frame": frame}, "activation", len(records), (4, 8), "float32")
            records.append(record)
            values[record.key] = value
    return Trace(records, source=MemorySource(values))


def test_a_port_that_recorded_from_frame_2_on_is_judged_from_there() -> None:
    whole = run(range(5))
    result = parity.compare(whole, run(range(2, 5)))
    assert (result.verdict, result.coverage.compared, result.coverage.reference) == ("match", 15, 25)
    assert any("from frame 2 on: 10 records of the other side before that" in note for note in result.notes)
    details = dict.fromkeys(SITES[1:4], 2)
    assert parity.compare(whole, run(range(5), details)).verdict == "match"
    assert parity.compare(run(range(5), details), whole).verdict == "match"
    result = parity.compare(whole, run(range(2, 5), wrong_from=3))
    assert (result.verdict, result.first.key) == ("diverged", "block.mlp@frame=3")
    assert {d.metric for d in result.divergences} == {"rel_l2"}


@pytest.mark.parametrize(
    ("port", "first"),
    [
        (run(range(5), {"block.mlp": 2}), "block.mlp@frame=0"),  # one call that did not happen
        (run(range(5), {"block.mlp": 2, "block.norm": 3, "block": 1}), "block.norm@frame=0"),  # no window: no one index
        (run(range(3)), "embed@frame=3"),  # the run ends early
    ],
    ids=["one site", "three indices", "ends early"],
)
def test_calls_that_did_not_happen_stay_missing(port: Trace, first: str) -> None:
    result = parity.compare(run(range(5)), port)
    assert (result.verdict, result.first.key, result.first.metric) == ("diverged", first, "missing")
