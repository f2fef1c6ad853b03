"""Counterfactual replay: an edit of one side's operations that gives the other side's value, and edits that almost do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from parity.capture.operations import Op, OpLog, WindowsClosed
from parity.diagnose import diagnose
from parity.diagnose.edits import HYPOTHESES
from parity.diagnose.evidence import Evidence
from parity.diagnose.replay import chain
from parity.trace import Record

Side = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, GATE, BIAS = draw(8, 8, seed=1), draw(1, 5, 8, seed=2), draw(8, seed=3)
OTHER = 1.01 * GATE
PAIR = draw(8, 16, seed=4)
X = draw(2, 5, 8, seed=5)


def run(side: Side, x: Tensor) -> tuple[Tensor, tuple[Op, ...]]:
    log = OpLog({"end": None})
    with torch.no_grad(), log:
        value = side(x)
        with pytest.raises(WindowsClosed):
            log.watch(Record("end", {}, "activation", 0, (), "float64"))
    return value, tuple(replace(step.op, makers=step.makers) for step in log.windows["end"])


def evidence(reference: Side, port: Side, x: Tensor = X, kind: str = "activation") -> Evidence:
    r, ref_ops = run(reference, x)
    p, port_ops = run(port, x)
    return Evidence(
        reference=r, port=p, site="m", kind=kind, floor=1e-12, precise=r, ref_ops=ref_ops, port_ops=port_ops
    )


def found(ev: Evidence) -> dict[str, tuple[str, str]]:
    return {h.name: (e.class_id or h.class_id, e.text) for h in HYPOTHESES for e in h.test(ev)}


def gated(x: Tensor) -> Tensor:
    return x + functional.silu(x @ W + BIAS) * torch.sigmoid(GATE)


def fused(x: Tensor) -> Tensor:
    a, b = PAIR.chunk(2, dim=1)
    return functional.silu(x @ a) + x @ b


@pytest.mark.parametrize(
    ("port", "what", "class_id"),
    [
        (lambda x: x + functional.silu(x @ W + BIAS), "mul", "N5"),
        (lambda x: x + functional.silu(x @ W) * torch.sigmoid(GATE), "add", "N5"),
        (lambda x: x + (x @ W + BIAS) * torch.sigmoid(GATE), "silu", "N5"),
        (lambda x: functional.silu(x @ W + BIAS) * torch.sigmoid(GATE), "add", "N5"),
        (lambda x: x + functional.silu(x @ W + BIAS) * GATE, "sigmoid", "N5"),
    ],
)
def test_an_operation_that_the_port_leaves_out(port: Side, what: str, class_id: str) -> None:
    causes = found(evidence(gated, port))
    assert causes["operation left out"][0] == class_id
    assert f" {what} at " in causes["operation left out"][1]
    assert "test_edits.py" in causes["operation left out"][1]


def test_an_operation_that_the_port_adds() -> None:
    causes = found(evidence(gated, lambda x: gated(x) + x))
    assert causes["operation added"][0] == "N6"
    causes = found(evidence(gated, lambda x: gated(x).clamp(-0.5, 0.5)))
    assert causes["operation added"][0] == "C8"


def test_parts_that_change_places() -> None:
    def port(x: Tensor) -> Tensor:
        b, a = PAIR.chunk(2, dim=1)
        return functional.silu(x @ a) + x @ b

    assert found(evidence(fused, port))["parts exchanged"][0] == "W3"


def test_a_difference_for_a_sum() -> None:
    causes = found(evidence(gated, lambda x: x - functional.silu(x @ W + BIAS) * torch.sigmoid(GATE)))
    assert causes["sign of a term"][0] == "N5"
    causes = found(evidence(gated, lambda x: x - functional.silu(x @ W + BIAS) * torch.sigmoid(GATE), kind="latent"))
    assert causes["sign of a term"][0] == "T8"


@pytest.mark.parametrize(
    ("change", "class_id", "words"),
    [
        (lambda w: w.bfloat16().double(), "W11", "rounded to bfloat16"),
        (torch.zeros_like, "W2", "zero"),
        (lambda w: w + draw(8, 8, seed=9), "W13", "other values"),
    ],
)
def test_weights_that_differ(change: Callable[[Tensor], Tensor], class_id: str, words: str) -> None:
    other = change(W)
    cause = found(evidence(gated, lambda x: x + functional.silu(x @ other + BIAS) * torch.sigmoid(GATE)))[
        "other constants"
    ]
    assert cause[0] == class_id
    assert words in cause[1]


@pytest.mark.parametrize(
    ("reference", "port", "class_id", "words"),
    [
        (gated, lambda x: x + functional.gelu(x @ W + BIAS) * torch.sigmoid(GATE), "N2", "where the reference runs silu"),
        (lambda x: functional.gelu(x @ W), lambda x: functional.gelu(x @ W, approximate="tanh"), "N2", "approximate tanh instead of none"),
        (lambda x: functional.layer_norm(x @ W, (8,), eps=1e-2), lambda x: functional.layer_norm(x @ W, (8,), eps=1e-5), "N1", "eps 1e-05 instead of 0.01"),
        (lambda x: (x @ W * 0.5).softmax(-1), lambda x: (x @ W * 0.25).softmax(-1), "W12", "other 0.25 instead of 0.5"),
    ],
)  # fmt: skip
def test_an_operation_that_is_another(reference: Side, port: Side, class_id: str, words: str) -> None:
    cause = found(evidence(reference, port))["operation replaced"]
    assert cause[0] == class_id
    assert words in cause[1]


def test_two_operations_that_are_others_are_not_one() -> None:
    causes = found(evidence(gated, lambda x: x + functional.gelu(x @ W + BIAS) * torch.tanh(GATE)))
    assert "operation replaced" not in causes


@pytest.mark.parametrize(
    "port",
    [
        gated,  # nothing
        lambda x: (
            x + functional.silu(x @ W + BIAS) * torch.sigmoid(OTHER)
        ),  # nearly the same gate: no operation too few
        lambda x: x + functional.gelu(x @ W + BIAS) * torch.sigmoid(GATE),  # another operation, not a missing one
        lambda x: x + 0.5 * functional.silu(x @ W) + 0.1,  # two edits at once
    ],
)
def test_what_no_single_edit_explains(port: Side) -> None:
    causes = found(evidence(gated, port))
    assert not {"operation left out", "operation added", "parts exchanged", "sign of a term"} & set(causes)


def test_a_log_with_random_numbers_is_not_replayed() -> None:
    def noisy(x: Tensor) -> Tensor:
        return functional.dropout(x @ W, 0.5, training=True) + BIAS

    assert not found(evidence(noisy, lambda x: x @ W))


def test_a_log_that_does_not_hold_the_value_is_not_replayed() -> None:
    ev = evidence(gated, lambda x: x)
    assert chain(replace(ev, reference=ev.reference + 1, precise=None), "ref") is None


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.sampled_from([torch.float64, torch.float32]), st.integers(0, 99))
def test_the_missing_bias_of_any_shape_is_found_first(tokens: int, width: int, dtype: torch.dtype, seed: int) -> None:
    w, bias, x = (
        draw(*s, seed=seed + i).to(dtype) for i, s in enumerate([(width, width), (width,), (2, tokens, width)])
    )
    ev = replace(evidence(lambda x: functional.silu(x @ w + bias), lambda x: functional.silu(x @ w), x), floor=1e-5)
    assert diagnose(ev)[0].class_id == "N5"


def weight_of_another_call(earlier_error: float) -> Evidence:
    other = W.roll(1, 0)
    ev = evidence(lambda x: x @ W, lambda x: x @ other)
    r, ref_ops = run(lambda x: torch.mm(x[0], W), X)
    p, port_ops = run(lambda x: torch.mm(x[0], other), X)
    table = [("y", {"frame": 0}, earlier_error, 1e-6), ("y", {"frame": 1}, 1.0, 1e-6)]
    return replace(
        ev, reference=r, port=p, ref_ops=ref_ops, port_ops=port_ops, site="y", coords={"frame": 1}, table=table,
        parameters={"weight": (W, W)},
    )  # fmt: skip


def test_a_weight_that_was_right_at_earlier_calls() -> None:
    assert diagnose(weight_of_another_call(0.0))[0].class_id == "W14"


def test_a_weight_that_was_never_right() -> None:
    assert "W14" not in {cause.class_id for cause in diagnose(weight_of_another_call(1.0))}


def test_a_frequency_table_rounded_to_bf16_is_a_buffer() -> None:
    table = 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    place = torch.arange(12, dtype=torch.float64)[:, None] + 1

    def side(frequencies: Tensor) -> Side:
        return lambda x: (x * frequencies).cos()

    ev = evidence(side(table), side(table.bfloat16().double()), place, kind="rope")
    assert diagnose(ev)[0].class_id in ("W10", "P6")
