"""Weight hypotheses: one parameter that went wrong on its way into the module, named with the module's evidence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.weights import ALL_TESTS, HYPOTHESES

W = normal(48, 32, seed=1)
A, B = 0.2 * normal(4, 32, seed=2), 0.2 * normal(48, 4, seed=3)
OTHER = normal(48, 32, seed=4)
X = normal(2, 7, 32, seed=5)


def quantised(w: Tensor) -> Tensor:
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).round() * step


def damaged(w: Tensor) -> Tensor:
    w = w.clone()
    w[5:7] = normal(2, w.shape[1], seed=9)
    return w


def default_init() -> Tensor:
    return (torch.rand(48, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1) * 32**-0.5


CASES = [
    ("scale dropped", W, W / 3e-3, {}, "W1"),
    ("scale per row dropped", W, W / (0.1 + normal(48, 1, seed=6).abs()), {}, "W1"),
    ("raw payload", 1e-2 * W, (W / W.abs().amax() * 127).round(), {}, "W1"),
    ("zero", W, W * 0, {}, "W2"),
    ("tied to another", W, OTHER, {"shared": (OTHER, OTHER)}, "W2"),
    ("never loaded", W, default_init(), {}, "W2"),
    ("order of q k v", W, W.reshape(3, 16, 32)[[1, 0, 2]].reshape(48, 32), {}, "W3"),
    ("rotary rows", W, W.reshape(3, 8, 2, 32).transpose(1, 2).reshape(48, 32), {}, "W4"),
    ("chunks of the modulation", W, W.reshape(6, 8, 32)[[3, 4, 5, 0, 1, 2]].reshape(48, 32), {}, "W3"),
    ("gain plus one", 1 + 0.1 * W[0], 2 + 0.1 * W[0], {}, "W6"),
    ("transposed", W[:32], W[:32].T.contiguous(), {}, "W9"),
    ("rounded", W, W.bfloat16().double(), {}, "W11"),
    ("file damaged", W, damaged(W), {}, "W13"),
    ("quantised", W, quantised(W), {}, "Q6"),
]


@pytest.mark.parametrize(("reference", "port", "others", "class_id"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_weight_is_diagnosed_as_a_record(reference: Tensor, port: Tensor, others: dict, class_id: str) -> None:
    ev = Evidence(reference, port, kind="weight", site="attn.q.weight", parameters=others)
    assert top(ev, ALL_TESTS)[1] == class_id


@pytest.mark.parametrize(("reference", "port", "others", "class_id"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_module_is_explained_by_its_parameter(reference: Tensor, port: Tensor, others: dict, class_id: str) -> None:
    x = X if reference.ndim == 2 else 1.0
    apply = (lambda w: x @ w.T) if reference.ndim == 2 else (lambda w: X * w)
    ev = Evidence(apply(reference), apply(port), parameters={"q.weight": (reference, port), **others}, inputs={"x": X})
    name, found, explanation = top(ev, HYPOTHESES)
    assert (name, found) == ("parameter_differs", class_id)
    assert explanation.parameters["parameter"] == "q.weight"
    assert explanation.text.startswith(("parameter q.weight", "q.weight is"))


def test_equal_parameters_explain_nothing() -> None:
    ev = Evidence(X @ W.T, X @ W.T + 0.1 * normal(2, 7, 48), parameters={"q": (W, W.clone())}, inputs={"x": X})
    assert explain(ev, HYPOTHESES) == []


def test_a_model_kept_in_half_precision_is_only_a_weak_cause() -> None:
    port = W.bfloat16()
    ev = Evidence(X @ W.T, X @ port.double().T, parameters={"q": (W, port)})
    _, class_id, explanation = top(ev, HYPOTHESES)
    assert class_id == "W11"
    assert explanation.confidence < 0.7


def test_one_parameter_of_several_rounded_violates_the_keep_list() -> None:
    ev = Evidence(
        X @ W.T, X @ W.bfloat16().double().T, parameters={"q": (W, W.bfloat16().double()), "k": (OTHER, OTHER)}
    )
    _, class_id, explanation = top(ev, HYPOTHESES)
    assert (class_id, explanation.confidence > 0.9) == ("W11", True)


def test_settings_are_hints() -> None:
    ev = Evidence(X, X + 0.1, settings={"eps": (1e-6, 1e-5), "heads": (4, 4), "scale": (0.125, 0.125 * (1 + 1e-12))})
    found = [
        (class_id, e.parameters["setting"])
        for name, class_id, e in explain(ev, HYPOTHESES)
        if name == "setting_differs"
    ]
    assert found == [("W12", "eps")]


def test_adapters_that_one_side_lacks() -> None:
    ev = Evidence(X, X + 1, parameters={"w": (W, W), "lora_a": (W[0], None)})
    assert ("parameter_absent", "W8") in [f[:2] for f in explain(ev, HYPOTHESES)]
    other = Evidence(X, X + 1, parameters={"w": (W, W), "bias": (W[0], None)})
    assert explain(other, HYPOTHESES) == []  # a parameter without a partner says nothing about this difference


@given(st.integers(100, 10_000), st.sampled_from([torch.float32, torch.float64]), st.floats(0.01, 1.0))
@settings(max_examples=25, deadline=None)
def test_unrelated_differences_are_not_given_a_class(seed: int, dtype: torch.dtype, size: float) -> None:
    port = W + size * normal(48, 32, seed=seed)
    ev = Evidence(W.to(dtype), port.to(dtype), kind="weight", site="w", parameters={"base": (OTHER, OTHER)})
    assert named(ev, ALL_TESTS) == {}


@pytest.mark.parametrize("value", [torch.zeros(0, 3), torch.zeros(4), torch.ones(2, 2), torch.full((8, 8), torch.nan)])
def test_degenerate_weights_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), torch.ones_like(value)):
        ev = Evidence(
            value, other, kind="weight", parameters={"a": (value, other), "b": (None, other), "c": (value, None)}
        )
        explain(ev, ALL_TESTS)
        explain(Evidence(X, X + 1, parameters=ev.parameters), HYPOTHESES)
