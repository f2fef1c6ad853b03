"""Layout hypotheses: every rearrangement and fixed map by the mistake, and silence beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.diagnose import diagnose
from parity.diagnose.evidence import Evidence
from parity.diagnose.layout import HYPOTHESES
from parity.diagnose.permutations import describe

TOKENS = normal(2, 24, 4, 16, seed=1)  # b n heads d
FILM = normal(2, 3, 5, 8, 12, seed=2)  # b c f h w, colours
LATENT = normal(2, 16, 5, 6, 8, seed=3)
FEATURES = normal(2, 24, 48, seed=4)

REARRANGED: list[tuple[str, Tensor, Tensor, str, str]] = [
    ("heads viewed without permute", TOKENS, TOKENS.permute(0, 2, 1, 3).reshape(TOKENS.shape), "activation", "A10"),
    ("permuted once too often", TOKENS, TOKENS.reshape(2, 4, 24, 16).permute(0, 2, 1, 3), "activation", "A10"),
    ("colours reversed", FILM, FILM.flip(1), "frame", "C7"),
    (
        "patch rows and columns",
        FILM,
        rearrange(FILM, "b c f (h p) (w q) -> b c f (h q) (w p)", p=2, q=2),
        "frame",
        "V5",
    ),
    ("tokens in column order", FEATURES, rearrange(FEATURES, "b (h w) d -> b (w h) d", h=4), "activation", "V5"),
    (
        "batch and frames folded",
        LATENT[:, :, :, 0],
        rearrange(LATENT, "b c f h w -> c b f h w").reshape(2, 16, 5, 6, 8)[:, :, :, 0],
        "activation",
        "V6",
    ),
    ("mask channels last", LATENT, LATENT.roll(4, 1), "input", "C5"),
    (
        "shards gathered in another order",
        FEATURES,
        FEATURES.reshape(2, 4, 6, 48)[:, [0, 2, 1, 3]].reshape(FEATURES.shape),
        "activation",
        "D3",
    ),
    ("sine and cosine swapped", normal(3, 32, seed=5), normal(3, 32, seed=5).roll(16, 1), "activation", "T2"),
    ("schedule shifted", normal(30, seed=6), normal(30, seed=6).roll(-1), "schedule", "T5"),
    (
        "mask rolled",
        (normal(2, 40, seed=7) > 0).double(),
        (normal(2, 40, seed=7) > 0).double().roll(7, 1),
        "mask",
        "A3",
    ),
    ("square weight transposed", normal(24, 24, seed=8), normal(24, 24, seed=8).T, "weight", "W9"),
    (
        "convolution kernel viewed",
        normal(8, 6, 3, 3, seed=9),
        normal(8, 6, 3, 3, seed=9).permute(2, 3, 1, 0).reshape(8, 6, 3, 3),
        "weight",
        "W9",
    ),
    (
        "fused projection order",
        normal(48, 20, seed=10),
        normal(48, 20, seed=10).reshape(3, 16, 20)[[1, 0, 2]].reshape(48, 20),
        "weight",
        "W3",
    ),
    (
        "per head against stacked",
        normal(48, 20, seed=11),
        rearrange(normal(48, 20, seed=11), "(s h d) i -> (h s d) i", s=3, h=4),
        "weight",
        "W3",
    ),
    (
        "rotary rows",
        normal(48, 20, seed=12),
        rearrange(normal(48, 20, seed=12), "(h d two) i -> (h two d) i", h=3, two=2),
        "weight",
        "W4",
    ),
    (
        "six modulation chunks",
        normal(48, 20, seed=13),
        normal(48, 20, seed=13).reshape(6, 8, 20)[[1, 0, 2, 4, 3, 5]].reshape(48, 20),
        "weight",
        "W5",
    ),
]


@pytest.mark.parametrize(
    ("reference", "port", "kind", "class_id"), [r[1:] for r in REARRANGED], ids=[r[0] for r in REARRANGED]
)
def test_rearrangements_are_named(reference: Tensor, port: Tensor, kind: str, class_id: str) -> None:
    name, found, explanation = top(Evidence(reference, port, kind=kind), HYPOTHESES)
    assert (name, found) == ("rearranged", class_id), explanation
    assert explanation.residual < 1e-9


def test_a_rotary_head_layout_is_reported_as_harmless() -> None:
    port = rearrange(TOKENS, "b n h (d two) -> b n h (two d)", two=2)
    _, class_id, explanation = top(Evidence(TOKENS, port), HYPOTHESES)
    assert class_id == "W4"
    assert explanation.parameters["benign"] is True


def test_a_rearrangement_with_one_foreign_value_in_twenty_is_not_one() -> None:
    port = TOKENS.permute(0, 2, 1, 3).reshape(TOKENS.shape).clone()
    port[:, ::5] = normal(2, 5, 4, 16, seed=99)
    assert "rearranged" not in named(Evidence(TOKENS, port), HYPOTHESES)


@pytest.mark.parametrize(
    ("port", "kind", "name", "class_id", "parameter"),
    [
        (-LATENT, "activation", "negated", "T8", {"factor": -1.0}),
        (LATENT * 0, "weight", "zeros", "W2", {}),
        (2 * LATENT - 1, "frame", "affine", "C8", {"factor": 2.0, "offset": -1.0}),
        (0.5 * LATENT + 0.5, "frame", "affine", "C8", {"factor": 0.5, "offset": 0.5}),
        (255 * LATENT, "frame", "factor", "C8", {"factor": 255.0}),
        (LATENT / 255, "input", "factor", "C8", {"factor": 1 / 255}),
        (LATENT / 0.18215, "latent", "factor", "C10", {"factor": 1 / 0.18215}),
        (LATENT * 1000, "activation", "factor", "T6", {"factor": 1000.0}),
        (LATENT / 3e-3, "weight", "factor", "W1", {"factor": 1 / 3e-3}),
        (LATENT + 1, "weight", "affine", "W6", {"offset": 1.0}),
    ],
)
def test_fixed_maps_are_named(port: Tensor, kind: str, name: str, class_id: str, parameter: dict[str, float]) -> None:
    found = top(Evidence(LATENT, port, kind=kind), HYPOTHESES)
    assert found[:2] == (name, class_id), found
    for key, value in parameter.items():
        assert found[2].parameters[key] == pytest.approx(value, rel=1e-6)


def test_a_factor_with_a_curve_is_not_a_factor() -> None:
    port = 2 * LATENT + 0.2 * LATENT.square()
    assert not set(named(Evidence(LATENT, port), HYPOTHESES)) & {"factor", "affine", "per_index", "rearranged"}


def test_latent_statistics_are_recognised_among_the_parameters() -> None:
    mean, std = normal(16, seed=21), 1 + 0.3 * normal(16, seed=22).abs()
    shape = (1, 16, 1, 1, 1)
    port = LATENT * std.reshape(shape) + mean.reshape(shape)
    ev = Evidence(LATENT, port, kind="latent", parameters={"std": (std, std), "mean": (mean, mean)})
    name, class_id, explanation = top(ev, HYPOTHESES)
    assert (name, class_id) == ("per_index", "C10")
    assert "std" in explanation.text
    assert "mean" in explanation.text


def test_gain_convention_is_recognised() -> None:
    w = 0.2 * normal(48, seed=23)
    reference = FEATURES * (1 + w)
    ev = Evidence(reference, FEATURES * (2 + w), parameters={"norm.weight": (w, w)})
    assert top(ev, HYPOTHESES)[:2] == ("per_index", "W6")
    assert top(Evidence(reference, FEATURES * w, parameters={"norm.weight": (w, w)}), HYPOTHESES)[:2] == (
        "per_index",
        "W6",
    )


def test_an_unknown_channel_map_keeps_a_lower_confidence() -> None:
    port = LATENT * (1 + normal(16, seed=24).abs()).reshape(1, 16, 1, 1, 1)
    name, class_id, explanation = top(Evidence(LATENT, port, kind="latent"), HYPOTHESES)
    assert (name, class_id) == ("per_index", "C10")
    assert explanation.confidence < 0.85


@pytest.mark.parametrize(
    ("port", "class_id", "word"),
    [
        (LATENT[:, :, :4], "V7", "lacks the last 1"),
        (LATENT[:, :, 1:], "V7", "lacks the first 1"),
        (torch.cat([LATENT, LATENT[:, :, :1] * 0], 2), "V7", "1 zero entries after"),
        (LATENT.permute(0, 2, 1, 3, 4), "A10", "axes permuted"),
        (LATENT.reshape(2, 16, 5, 48), "V11", "another shape"),
    ],
)
def test_other_shapes(port: Tensor, class_id: str, word: str) -> None:
    name, found, explanation = top(Evidence(LATENT, port, kind="latent"), HYPOTHESES)
    assert (name, found) == ("shape_changed", class_id)
    assert word in explanation.text


def test_another_shape_with_other_values_is_not_explained() -> None:
    assert explain(Evidence(LATENT, normal(2, 16, 4, 6, 8, seed=77), kind="latent"), HYPOTHESES) == []


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(0, 3),
        torch.zeros(4),
        torch.ones(2, 2),
        torch.tensor(1.0),
        torch.full((3, 4), torch.nan),
        torch.arange(6),
        torch.tensor([True, False]),
    ],
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (
        value,
        value.clone(),
        torch.zeros_like(value),
        torch.ones_like(value),
        value.reshape(-1)[:0],
        value[..., None],
    ):
        for kind in ("activation", "weight", "frame", "mask"):
            explain(Evidence(value, other, kind=kind), HYPOTHESES)


@given(
    st.integers(0, 10_000),
    st.sampled_from([(4, 6, 8), (3, 20), (2, 5, 3, 4), (2, 3, 4, 4, 6)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_permutation_of_one_axis_is_found(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    order = torch.randperm(shape[axis], generator=torch.Generator().manual_seed(seed))
    reference = normal(*shape, seed=seed, dtype=dtype)
    port = reference.index_select(axis, order)
    found = explain(Evidence(reference, port), HYPOTHESES)
    if torch.equal(order, torch.arange(shape[axis])):
        assert found == []
    else:
        assert found[0][0] == "rearranged"
        assert found[0][2].residual < 1e-6


@given(
    st.integers(0, 10_000),
    st.floats(0.05, 20).filter(lambda c: abs(c - 1) > 0.05),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_any_factor_is_found(seed: int, c: float, dtype: torch.dtype) -> None:
    reference = normal(3, 10, 12, seed=seed, dtype=dtype)
    _, _, explanation = top(Evidence(reference, (reference.double() * c).to(dtype)), HYPOTHESES)
    assert explanation.parameters["factor"] == pytest.approx(c, rel=1e-2)


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.floats(1e-4, 3.0))
@settings(max_examples=40, deadline=None)
def test_noise_is_never_explained(seed: int, dtype: torch.dtype, size: float) -> None:
    reference = normal(2, 12, 4, 8, seed=seed)
    port = reference + size * normal(2, 12, 4, 8, seed=seed + 1)
    assert named(Evidence(reference.to(dtype), port.to(dtype)), HYPOTHESES) == {}


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_index_maps_are_described_exactly(sizes: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    index = np.arange(int(np.prod(sizes))).reshape(sizes).transpose(order).reshape(-1)
    structure = describe(index)
    assert (structure.kind == "identity") == bool((index == np.arange(len(index))).all())
    assert structure.kind not in {"arbitrary", "swaps", "repeated"} or len(index) <= 6


def test_what_was_done_to_one_frame_alone_is_said_of_it() -> None:
    clip = normal(3, 9, 16, 24).float()
    port = clip.clone()
    port[:, -1] = clip[:, -1].flip(0)
    first = diagnose(Evidence(clip, port, kind="frame"))[0]
    assert first.class_id == "C7"
    assert first.text.startswith("only the last of 9 frames: ")
    port[:, -1] = clip[:, -1] / 2 + 0.5
    assert diagnose(Evidence(clip, port, kind="frame"))[0].class_id == "C8"
    port = clip + 0.1 * normal(3, 9, 16, 24, seed=1).float()
    assert not [c for c in diagnose(Evidence(clip, port, kind="frame")) if c.text.startswith("only")]


def test_frames_that_are_taken_from_other_places() -> None:
    clip = normal(1, 3, 7, 16, 24)
    port = clip[:, :, [0, 2, 3, 4, 5, 6, 6]]
    name, class_id, found = top(Evidence(clip, port, kind="frame"), HYPOTHESES)
    assert (name, class_id) == ("reindexed", "V7")
    assert found.text.endswith("P[1..5] is R[2..6]")


@pytest.mark.parametrize(("shift", "class_id"), [(1, "V6"), (2, "C1")])
def test_samples_that_change_places(shift: int, class_id: str) -> None:
    x = normal(4, 12, 32)
    assert top(Evidence(x, x.roll(shift, 0)), HYPOTHESES)[1] == class_id


def test_what_was_asked_for_is_another_number_or_text() -> None:
    flag = Evidence(torch.tensor(1), torch.tensor(0), kind="input", site="plan.loop")
    assert diagnose(flag)[0].class_id == "W12"
    assert diagnose(flag)[0].text.startswith("plan.loop is 0 where the reference has 1")
    ids = torch.tensor([[5, 17, 3, 99, 0, 0], [8, 2, 41, 7, 12, 0]])
    other = ids.clone()
    other[1, 2:] = torch.tensor([9, 30, 4, 1])
    found = diagnose(Evidence(ids, other, kind="input"))[0]
    assert found.class_id == "C3"
    assert "1 of 2 texts, from place 2 on" in found.text


@pytest.mark.parametrize(("value", "class_id"), [(0.0, "C5"), (None, "V8")])
def test_the_end_of_a_clip(value: float | None, class_id: str) -> None:
    clip = normal(3, 9, 8, 8).float()
    clip[:, 4] = 0.0
    port = clip.clone()
    port[:, -1] = clip[:, -2] if value is None else value
    assert top(Evidence(clip, port, kind="frame"), HYPOTHESES)[1] == class_id
