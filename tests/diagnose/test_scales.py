"""Scales of quantised layers: counted twice, overwritten, or not those of an adapter."""

from __future__ import annotations

import pytest
import torch
from recognise import named, normal, top

from parity.diagnose.evidence import Evidence
from parity.diagnose.scales import HYPOTHESES

PRODUCT, BIAS = normal(2, 7, 16, seed=1), normal(16, seed=2)
SCALE = torch.tensor(0.004, dtype=torch.float64)
ROWS = 0.01 + normal(16, seed=3).abs()


@pytest.mark.parametrize("scale", [SCALE, ROWS], ids=["one", "rows"])
@pytest.mark.parametrize("again", [True, False])
def test_a_scale_counts_twice_or_not_at_all(scale: torch.Tensor, again: bool) -> None:
    right, more = PRODUCT * scale + BIAS, PRODUCT * scale * scale + BIAS
    reference, port = (right, more) if again else (more, right)
    ev = Evidence(reference, port, parameters={"scale": (scale, scale), "bias": (BIAS, BIAS)})
    name, class_id, found = top(ev, HYPOTHESES)
    assert (name, class_id) == ("scale applied again", "W1")
    assert found.parameters == {"scale": "scale", "bias": "bias"}
    assert ("once more" if again else "not applied") in found.text


def test_a_factor_that_is_no_scale_of_the_layer() -> None:
    port = PRODUCT * 0.005 + BIAS
    ev = Evidence(PRODUCT + BIAS, port, parameters={"scale": (SCALE, SCALE), "bias": (BIAS, BIAS)})
    assert not named(ev, HYPOTHESES)


def overwriting(port_entry: float, first_error: float = 0.0) -> Evidence:
    stored = torch.tensor([0.03, 0.04])
    now = torch.tensor([0.03, port_entry])
    return Evidence(
        torch.tensor(0.04), torch.tensor(0.03), site="xs", coords={"branch": 1}, parameters={"scales": (stored, now)},
        earlier={"xs@branch=0": torch.tensor(0.03)},
        table=[("xs", {"branch": 0}, first_error, 1e-6), ("xs", {"branch": 1}, 0.25, 1e-6)],
    )  # fmt: skip


def test_a_stored_scale_is_overwritten_while_the_model_runs() -> None:
    assert named(overwriting(0.03), HYPOTHESES) == {"stored scale overwritten": "Q5"}


def test_a_scale_that_was_wrong_from_the_start_was_not_overwritten() -> None:
    assert not named(overwriting(0.05), HYPOTHESES)
    assert not named(overwriting(0.03, first_error=0.1), HYPOTHESES)


def quantised(update: torch.Tensor) -> Evidence:
    step = 0.02
    base = (0.4 * normal(48, 16, seed=4) / step).round().clamp(-127, 127)
    stored = (base + (update / step).round()).clamp(-127, 127)
    pair = (base.to(torch.int8), stored.to(torch.int8))
    return Evidence(base * step, stored * step, kind="weight", parameters={"qweight": pair})


def test_an_adapter_added_to_the_integers() -> None:
    update = normal(48, 2, seed=5) @ normal(2, 16, seed=6) * 0.3
    _, class_id, found = top(quantised(update), HYPOTHESES)
    assert class_id == "Q7"
    assert found.parameters["rank"] == 2


def test_integers_of_another_checkpoint_are_no_adapter() -> None:
    assert not named(quantised(0.3 * normal(48, 16, seed=7)), HYPOTHESES)
