"""Conditioning hypotheses: guidance, hidden states, padding, masks, resizing, missing and doubled terms."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.conditioning import HYPOTHESES
from parity.diagnose.evidence import Evidence

C, U = normal(2, 4, 3, 6, 8, seed=1), normal(2, 4, 3, 6, 8, seed=2)
X = normal(2, 9, 16, seed=3)
Y = normal(2, 9, 16, seed=4)


def guided(s: float) -> Tensor:
    return U + s * (C - U)


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (C, "conditional branch"),
        (U, "unconditional branch"),
        (C + 5 * (U - C), "swapped"),
        (C + 5 * (C - U), "other guidance convention"),
        (guided(3.5), "scale is 3.5 instead of 5"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_guidance(port: Tensor, said: str, joined: bool) -> None:
    inputs = {"both": torch.cat([U, C])} if joined else {"a": C, "b": U, "noise": normal(2, 4, 3, 6, 8, seed=5)}
    found = [f for f in explain(Evidence(guided(5.0), port, inputs=inputs), HYPOTHESES) if f[0] == "guidance"]
    assert found
    assert found[0][1] == "C1"
    assert said in found[0][2].text
    assert found[0][2].parameters["scale"] == pytest.approx(5.0)


def test_guidance_of_some_channels() -> None:
    port = guided(4.0)
    port[:, 3:] = C[:, 3:]
    name, class_id, explanation = top(Evidence(guided(4.0), port, inputs={"c": C, "u": U}), HYPOTHESES)
    assert (name, class_id) == ("guidance", "C1")
    assert explanation.parameters["guided"] == [0, 1, 2]


def test_a_combination_with_noise_is_not_guidance() -> None:
    port = guided(3.0) + 0.2 * normal(2, 4, 3, 6, 8, seed=6)
    assert named(Evidence(guided(5.0), port, inputs={"c": C, "u": U}), HYPOTHESES) == {}


def test_one_half_of_the_batch() -> None:
    reference = normal(4, 9, 16, seed=7)
    port = torch.cat([reference[2:], reference[2:]])
    assert top(Evidence(reference, port), HYPOTHESES)[:2] == ("one_branch", "C1")


def test_another_hidden_state() -> None:
    states = {f"layers.{i}": normal(2, 9, 16, seed=20 + i) for i in range(5)}

    def ref_at(site: str, coords: Mapping[str, int]) -> Tensor | None:
        return states.get(site)

    ev = Evidence(states["layers.4"], states["layers.2"], site="layers.4", sites=list(states), ref_at=ref_at)
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("other_record", "C2")
    assert explanation.parameters["equals"] == "layers.2"
    near = Evidence(states["layers.4"], states["layers.2"] + 0.1, site="layers.4", sites=list(states), ref_at=ref_at)
    assert "other_record" not in named(near, HYPOTHESES)


def test_a_sampled_posterior() -> None:
    mean, log_variance = normal(1, 8, 4, 6, 8, seed=18), -2 + 0.5 * normal(1, 8, 4, 6, 8, seed=19)
    moments = torch.cat([mean, log_variance], 1)
    reference = (mean - 0.2) / 1.7
    port = (mean + (0.5 * log_variance).exp() * normal(1, 8, 4, 6, 8, seed=20) - 0.2) / 1.7
    assert top(Evidence(reference, port, kind="latent", inputs={"moments": moments}), HYPOTHESES)[:2] == (
        "sampled_posterior",
        "C9",
    )
    weak = reference + 0.3 * (port - reference)
    assert "sampled_posterior" not in named(
        Evidence(reference, weak, kind="latent", inputs={"moments": moments}), HYPOTHESES
    )


BIAS, GATE = normal(16, seed=30), 0.5 + normal(16, seed=31).abs()


def test_a_term_with_noise_is_not_a_term() -> None:
    ev = Evidence(X + Y, X + 0.2 * normal(2, 9, 16, seed=40), inputs={"y": Y}, parameters={"bias": (BIAS, BIAS)})
    assert named(ev, HYPOTHESES) == {}


@given(st.integers(100, 10_000), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-3, 2.0))
@settings(max_examples=40, deadline=None)
def test_noise_is_never_explained(seed: int, dtype: torch.dtype, size: float) -> None:
    reference = normal(2, 9, 16, seed=seed)
    port = reference + size * normal(2, 9, 16, seed=seed + 1)
    inputs = {"x": X, "y": Y, "gate": GATE, "t": normal(2, 9, 16, seed=seed + 2)}
    ev = Evidence(reference.to(dtype), port.to(dtype), inputs=inputs, parameters={"b": (BIAS, BIAS)})
    assert named(ev, HYPOTHESES) == {}


@given(
    st.integers(0, 10_000), st.floats(1.5, 9), st.floats(-3, 12), st.sampled_from([(2, 4, 6, 5), (1, 30, 8), (7, 9)])
)
@settings(max_examples=40, deadline=None)
def test_any_guidance_scale_is_read_back(seed: int, s: float, other: float, shape: tuple[int, ...]) -> None:
    if abs(s - other) < 0.1:
        return
    c, u = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    ev = Evidence(u + s * (c - u), u + other * (c - u), inputs={"u": u, "c": c})
    found = [f for f in explain(ev, HYPOTHESES) if f[0] == "guidance"]
    assert found[0][2].parameters["scale"] == pytest.approx(s, rel=1e-3)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(0, 3), torch.zeros(4), torch.tensor(1.0), torch.ones(2, 3, 20, 20), torch.full((8, 8), torch.nan)],
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value + 1, value[..., None]):
        for kind in ("activation", "input", "mask"):
            inputs = {"x": value, "y": other, "z": torch.zeros(0)}
            explain(Evidence(value, other, kind=kind, inputs=inputs, parameters={"p": (value, None)}), HYPOTHESES)


def test_a_sample_drawn_where_the_mode_is_taken() -> None:
    reference, std, noise = (
        normal(1, 4, 3, 6, 8, seed=50),
        normal(1, 4, 3, 6, 8, seed=51).exp(),
        normal(1, 4, 3, 6, 8, seed=52),
    )
    ops = (Op("randn", (), (noise,)), Op("exp", (std.log(),), (std,)), Op("mul", (std, noise), (std * noise,)))
    found = top(Evidence(reference, reference + std * noise, kind="latent", port_ops=ops), HYPOTHESES)
    assert found[:2] == ("sampled_posterior", "C9")
