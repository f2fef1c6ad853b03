"""Video hypotheses: place tells the mistake."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recognise import explain, named, normal, top
from torch import Tensor

from parity.diagnose.evidence import Evidence
from parity.diagnose.video import HYPOTHESES

FILM = normal(1, 3, 17, 32, 48, seed=1)
NOISE = normal(1, 3, 17, 32, 48, seed=2)


def with_error(where: Tensor) -> Evidence:
    return Evidence(FILM, FILM + 0.3 * NOISE * where, kind="frame")


def frames(*indices: int) -> Tensor:
    mask = torch.zeros(1, 1, 17, 1, 1, dtype=torch.float64)
    mask[:, :, list(indices)] = 1
    return mask


def test_only_the_first_frame() -> None:
    assert top(with_error(frames(0)), HYPOTHESES)[:2] == ("first_frames", "V1")
    decay = torch.zeros(17, dtype=torch.float64)
    decay[:6] = 0.5 ** torch.arange(6)
    assert top(with_error(decay.reshape(1, 1, 17, 1, 1)), HYPOTHESES)[:2] == ("first_frames", "V1")
    assert "first_frames" not in named(with_error(frames(1)), HYPOTHESES)


def test_four_t_frames() -> None:
    port = torch.cat([FILM[:, :, :3] * 0.9, FILM], 2)
    port[:, :, 3] += 0.2 * NOISE[:, :, 0]
    name, class_id, explanation = top(Evidence(FILM, port, kind="frame"), HYPOTHESES)
    assert (name, class_id) == ("phase_shift", "V1")
    assert explanation.parameters == {"reference": 17, "port": 20}
    assert explain(Evidence(FILM, FILM[:, :, :15], kind="frame"), HYPOTHESES) == []


@pytest.mark.parametrize(("indices", "period"), [((1, 5, 9, 13), 4), ((4, 8, 12, 16), 4), ((1, 9), 8)])
def test_joints_of_chunks(indices: tuple[int, ...], period: int) -> None:
    name, class_id, explanation = top(with_error(frames(*indices)), HYPOTHESES)
    assert (name, class_id) == ("chunk_period", "V2")
    assert explanation.parameters["period"] == period


def test_irregular_frames_are_no_chunks() -> None:
    assert "chunk_period" not in named(with_error(frames(1, 4, 9, 10)), HYPOTHESES)


@pytest.mark.parametrize("sides", [("top", "left"), ("top", "bottom", "left", "right"), ("right",)])
@pytest.mark.parametrize("width", [1, 3])
def test_borders(sides: tuple[str, ...], width: int) -> None:
    mask = torch.zeros(32, 48, dtype=torch.float64)
    where = {"top": mask[:width], "bottom": mask[-width:], "left": mask[:, :width], "right": mask[:, -width:]}
    for side in sides:
        where[side][:] = 1
    name, class_id, explanation = top(with_error(mask), HYPOTHESES)
    assert (name, class_id) == ("border", "V3")
    assert (explanation.parameters["width"], set(explanation.parameters["sides"])) == (width, set(sides))


def test_one_pixel_inside_is_no_border() -> None:
    mask = torch.zeros(32, 48, dtype=torch.float64)
    mask[:2] = 1
    mask[16, 20] = 1
    assert "border" not in named(with_error(mask), HYPOTHESES)


@pytest.mark.parametrize(("pitch", "width"), [(12, 2), (8, 1), (12, 4)])
def test_tile_seams(pitch: int, width: int) -> None:
    mask = torch.zeros(48, dtype=torch.float64)
    for start in range(pitch, 48, pitch):
        mask[start : start + width] = 1
    name, class_id, explanation = top(with_error(mask.reshape(1, 1, 1, 1, 48)), HYPOTHESES)
    assert (name, class_id) == ("tile_grid", "V4")
    assert (explanation.parameters["pitch"], explanation.parameters["width"]) == (pitch, width)


def test_the_end_frame() -> None:
    assert top(with_error(frames(16)), HYPOTHESES)[:2] == ("last_frames", "V8")
    port = FILM.clone()
    port[:, :, 16] = port[:, :, 15]
    _, class_id, explanation = top(Evidence(FILM, port, kind="frame"), HYPOTHESES)
    assert class_id == "V8"
    assert explanation.parameters["frozen"] == [16]


def test_a_step_at_a_joint() -> None:
    port = FILM.clone()
    port[:, :, 9:] = 0.9 * port[:, :, 9:] + 0.1
    name, class_id, explanation = top(Evidence(FILM, port, kind="frame"), HYPOTHESES)
    assert (name, class_id, explanation.parameters["frame"]) == ("seam", "V9", 9)
    noisy = FILM + 0.3 * NOISE * frames(*range(9, 17))
    assert "seam" not in named(Evidence(FILM, noisy, kind="frame"), HYPOTHESES)


def test_a_frozen_film() -> None:
    port = FILM[:, :, :1].expand_as(FILM) * 0.7 + 0.1
    assert "frozen_frames" in named(Evidence(FILM, port, kind="frame"), HYPOTHESES)


@given(
    st.integers(0, 10_000),
    st.floats(1e-3, 2.0),
    st.sampled_from([(1, 3, 9, 16, 20), (1, 16, 5, 8, 12), (6, 3, 16, 24)]),
)
@settings(max_examples=30, deadline=None)
def test_even_noise_has_no_place(seed: int, size: float, shape: tuple[int, ...]) -> None:
    reference = normal(*shape, seed=seed, dtype=torch.float32)
    port = reference + size * normal(*shape, seed=seed + 1, dtype=torch.float32)
    assert explain(Evidence(reference, port, kind="frame"), HYPOTHESES) == []


@pytest.mark.parametrize(
    "value", [torch.zeros(0, 3), torch.zeros(4), torch.ones(2, 4, 16), torch.full((3, 4, 8, 8), torch.nan)]
)
def test_degenerate_tensors_never_raise(value: Tensor) -> None:
    for other in (value, torch.zeros_like(value), value + 1, value[..., None], value[:0]):
        explain(Evidence(value, other, kind="frame"), HYPOTHESES)
