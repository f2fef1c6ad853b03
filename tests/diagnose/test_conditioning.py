"""Conditioning hypotheses: guidance, hidden states, padding, masks, resizing, missing and doubled terms."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor
from torch.nn import functional

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


@pytest.mark.parametrize("side", ["port", "reference"])
def test_the_final_norm(side: str) -> None:
    raw = 3 * normal(2, 40, 16, seed=8) + 1
    normed = functional.layer_norm(raw, (16,)) * (1 + 0.2 * normal(16, seed=9)) + 0.1 * normal(16, seed=10)
    ev = Evidence(raw, normed) if side == "port" else Evidence(normed, raw)
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id, explanation.parameters["side"]) == ("final_norm", "C2", side)


def test_padding_kept_or_cut() -> None:
    reference = normal(2, 12, 8, seed=11)
    kept = reference.clone()
    reference[0, 5:], reference[1, 9:] = 0, 0
    name, class_id, explanation = top(Evidence(reference, kept), HYPOTHESES)
    assert (name, class_id) == ("padded_rows", "C3")
    assert explanation.parameters["lengths"] == [5, 9]
    _, class_id, explanation = top(Evidence(kept, reference), HYPOTHESES)
    assert (class_id, explanation.parameters["side"]) == ("C3", "port zeroes")
    middle = kept.clone()
    middle[:, 3:5] = 0
    assert "padded_rows" not in named(Evidence(kept, middle), HYPOTHESES)


def test_padding_on_the_other_side() -> None:
    reference = normal(2, 12, 8, seed=12)
    port = torch.stack([reference[0].roll(7, 0), reference[1].roll(3, 0)])
    name, _, explanation = top(Evidence(reference, port), HYPOTHESES)
    assert (name, explanation.parameters["shifts"]) == ("padded_rows", [7, 3])


def test_inverted_mask() -> None:
    mask = (normal(1, 4, 5, 6, 8, seed=13) > 0.3).double()
    assert top(Evidence(mask, 1 - mask, kind="input"), HYPOTHESES)[:2] == ("inverted_mask", "C5")
    assert top(Evidence(mask.bool(), ~mask.bool(), kind="mask"), HYPOTHESES)[:2] == ("inverted_mask", "A2")
    partly = 1 - mask
    partly[:, 0] = mask[:, 0]
    assert "inverted_mask" not in named(Evidence(mask, partly, kind="input"), HYPOTHESES)


def test_another_fill_of_the_last_frame() -> None:
    reference = normal(1, 20, 5, 6, 8, seed=14)
    reference[:, :4, -1] = 0
    port = reference.clone()
    port[:, :4, -1] = 1
    name, class_id, explanation = top(Evidence(reference, port, kind="input"), HYPOTHESES)
    assert (name, class_id) == ("slice_filled", "C5")
    assert "frames 4" in explanation.text
    assert "channels 0..3" in explanation.text


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"mode": "bilinear", "antialias": True}, {"mode": "bilinear"}),
        ({"mode": "bicubic"}, {"mode": "bilinear"}),
        ({"mode": "bilinear", "align_corners": True}, {"mode": "bilinear"}),
        ({"mode": "area"}, {"mode": "nearest"}),
    ],
)
def test_resize_filters(mine: dict, theirs: dict) -> None:
    picture = normal(2, 3, 40, 56, seed=15)
    reference, port = (2 * functional.interpolate(picture, (20, 24), **how) - 1 for how in (mine, theirs))
    name, class_id, explanation = top(Evidence(reference, port, kind="input", inputs={"picture": picture}), HYPOTHESES)
    assert (name, class_id) == ("resampled", "C6")
    assert theirs["mode"] in explanation.parameters["port"]


def test_a_smoother_picture_without_its_source() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 6, 48), torch.linspace(0, 9, 64), indexing="ij")
    picture = ((x + y).sin() > 0).double().reshape(1, 1, 48, 64).expand(1, 3, 48, 64) + 0.05 * normal(
        1, 3, 48, 64, seed=16
    )
    smooth = functional.avg_pool2d(functional.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    assert top(Evidence(picture, 0.7 * picture + 0.3 * smooth, kind="frame"), HYPOTHESES)[1] == "C6"
    noisy = picture + 0.1 * normal(1, 3, 48, 64, seed=17)
    assert "resampled" not in named(Evidence(picture, noisy, kind="frame"), HYPOTHESES)


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


@pytest.mark.parametrize(
    ("reference", "port", "name", "class_id"),
    [
        (X + Y, X, "term", "N5"),
        (X + Y, X + 2 * Y, "term", "N6"),
        (X + Y, X + 0.25 * Y, "term", "N5"),
        (X + GATE * Y, X + Y, "gated_term", "N5"),
        (X + GATE * Y, X, "gated_term", "N5"),
        (X + Y + BIAS, X + Y, "bias_vector", "N5"),
        (functional.silu(X), X, "step_applied", "N5"),
        (functional.silu(X), functional.silu(functional.silu(X)), "step_applied", "N6"),
        (functional.layer_norm(3 * X + 1, (16,), eps=1e-6), 3 * X + 1, "step_applied", "N5"),
    ],
)
def test_terms_and_steps(reference: Tensor, port: Tensor, name: str, class_id: str) -> None:
    ev = Evidence(reference, port, inputs={"y": Y, "gate": GATE}, parameters={"bias": (BIAS, BIAS)})
    assert top(ev, HYPOTHESES)[:2] == (name, class_id)


def test_a_step_that_does_nothing() -> None:
    ev = Evidence(X + functional.silu(Y), X, inputs={"x": X, "y": Y})
    assert top(ev, HYPOTHESES)[:2] == ("input_unchanged", "N5")


def test_terms_found_among_the_operations() -> None:
    inner = functional.gelu(Y)
    ops = (Op("gelu", (Y,), (inner,)), Op("add", (X, inner), (X + inner,)))
    found = top(Evidence(X + inner, X + 2 * inner, ref_ops=ops), HYPOTHESES)
    assert found[:2] == ("term", "N6")


def test_a_gate_that_was_not_captured() -> None:
    ev = Evidence(X + GATE * Y, X + Y, inputs={"y": Y})
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("channel_gate", "N5")
    assert explanation.confidence < 0.9


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


def test_token_ids() -> None:
    ids = torch.tensor([[5, 9, 17, 3, 8, 1, 0, 0, 0, 0], [5, 9, 11, 12, 13, 14, 15, 1, 0, 0]])
    left = torch.stack([ids[0].roll(4), ids[1].roll(2)])
    name, class_id, explanation = top(Evidence(ids, left, kind="input"), HYPOTHESES)
    assert (name, class_id, explanation.parameters["how"]) == ("token_ids", "C3", "padded on the other side")
    untemplated = torch.stack([torch.cat([row[2:], torch.zeros(2, dtype=torch.int64)]) for row in ids])
    assert "2 tokens are left out at 0" in top(Evidence(ids, untemplated, kind="input"), HYPOTHESES)[2].text
    positions = torch.arange(10).expand(2, 10)
    assert "token_ids" not in named(Evidence(positions, positions + 1, kind="input"), HYPOTHESES)


def test_a_sample_drawn_where_the_mode_is_taken() -> None:
    reference, std, noise = (
        normal(1, 4, 3, 6, 8, seed=50),
        normal(1, 4, 3, 6, 8, seed=51).exp(),
        normal(1, 4, 3, 6, 8, seed=52),
    )
    ops = (Op("randn", (), (noise,)), Op("exp", (std.log(),), (std,)), Op("mul", (std, noise), (std * noise,)))
    found = top(Evidence(reference, reference + std * noise, kind="latent", port_ops=ops), HYPOTHESES)
    assert found[:2] == ("sampled_posterior", "C9")
