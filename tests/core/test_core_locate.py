"""Who made a diverging value: the record's own module, or the lone module just before it that made the same numbers."""

from __future__ import annotations

import torch
from core_models import noise

from parity.locate.first import owner
from parity.result import Divergence
from parity.trace import Manifest, Record, Trace

X, NORMED = noise(2, 4), noise(2, 4, seed=1)


def trace(*records: tuple[str, str, str, torch.Tensor]) -> Trace:
    """Build a trace from (site, module, role, value) in this order."""
    made = Trace(manifest=Manifest())
    for i, (site, module, role, value) in enumerate(records):
        made.add(
            Record(site, {}, "activation", i, tuple(value.shape), "float32", module=module, role=role), value.clone()
        )
    return made


def at(site: str) -> Divergence:
    return Divergence(site, {}, "input", "rel_l2", 1.0, 0.0)


RUN = trace(
    ("o", "o", "out", X),
    ("norm.in.x", "model", "in", X),
    ("norm", "norm", "out", NORMED),
    ("ffn.in.x", "model", "in", NORMED),
    ("ffn.0.in.x", "ffn", "in", NORMED),
)


def test_a_lone_module_that_made_the_value_owns_it() -> None:
    assert owner(at("ffn.0.in.x"), RUN, {"o", "ffn.0.in.x"}) == "norm"


def test_a_compared_record_stops_the_search() -> None:
    assert owner(at("ffn.0.in.x"), RUN, {"o", "norm", "ffn.0.in.x"}) == "model"  # ffn only handed it on
    assert owner(at("ffn.0.in.x"), RUN, {"ffn.in.x", "ffn.0.in.x"}) == "ffn"  # agreed until there
    assert owner(at("ffn.0.in.x"), RUN) == "ffn"


def test_other_numbers_are_not_the_value() -> None:
    changed = trace(
        ("o", "o", "out", X),
        ("norm", "norm", "out", NORMED),
        ("ffn.0.in.x", "ffn", "in", NORMED + 1),
    )
    assert owner(at("ffn.0.in.x"), changed, {"o", "ffn.0.in.x"}) == "ffn"
