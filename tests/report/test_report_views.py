"""Caches, positions, masks and charts: what their sentences say and what is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from report_samples import diverged, match, media, rows

from parity.report.charts import growth, per_axis
from parity.report.media import KvView, MaskView, PairView, RopeView
from parity.report.pairs import pair_figure
from parity.report.pixels import error_colours, reduce_cells
from parity.report.svg import Chart, Series, draw
from parity.report.views import kv_figure, kv_overview, mask_figure, rope_figure, worst_first


def test_caches_that_agree() -> None:
    figure = kv_figure(media().kv[0])
    assert (figure.differs, figure.sentence) == (False, "Both sides hold the same frames in every slot.")
    assert len(figure.pictures) == 3


def test_same_frames_with_other_contents_differ() -> None:
    held = np.arange(6).reshape(2, 3)
    error = np.full((2, 3), 1e-7)
    error[1, 2] = 0.5
    figure = kv_figure(KvView("k", held, held, error, floor=1e-6))
    assert figure.differs
    assert figure.sentence.endswith("Worst error of an entry: 0.5.")
    assert "after frame 1, slot 2: 0.5, floor 1e-06" in figure.pictures[2]


def test_empty_slots_are_named() -> None:
    figure = kv_figure(KvView("k", np.array([[3, -1]]), np.array([[3, 4]]), rows=("step 9",)))
    assert "first after frame step 9, slot 1: nothing in the reference, frame 4 in the port" in figure.sentence


@pytest.mark.parametrize("make", ["kv", "rope", "mask"])
def test_other_shapes_are_said(make: str) -> None:
    a, b = np.zeros((2, 3), int), np.zeros((2, 4), int)
    figure = {
        "kv": lambda: kv_figure(KvView("x", a, b)),
        "rope": lambda: rope_figure(RopeView("x", a, b)),
        "mask": lambda: mask_figure(MaskView("x", a, b)),
    }[make]()
    assert figure.differs
    assert "2×3 in the reference, 2×4 in the port" in figure.sentence
    assert figure.pictures == ()


def test_tables_within_their_floor_agree() -> None:
    table = np.random.default_rng(0).normal(size=(5, 4))
    assert not rope_figure(RopeView("x", table, table + 1e-7, floor=1e-6)).differs
    assert rope_figure(RopeView("x", table, table + 1e-5, floor=1e-6)).differs


def test_nan_in_a_table_differs_unless_both_have_it() -> None:
    table = np.ones((3, 2))
    broken = table.copy()
    broken[1, 0] = np.nan
    assert not rope_figure(RopeView("x", broken, broken)).differs
    figure = rope_figure(RopeView("x", table, broken))
    assert (
        "Differs at 1 of 3 positions (first 1) and in 1 of 2 channels (first 0); largest difference inf."
        in figure.sentence
    )


def test_masks() -> None:
    mask = np.tril(np.ones((6, 6)))
    assert mask_figure(MaskView("m", mask, mask)).sentence == "Every query sees the same keys on both sides."
    wide = mask_figure(MaskView("m", mask, np.ones((6, 6)), row_label="frame"))
    assert (
        wide.sentence
        == "0 keys are hidden and 15 shown that should not be, in 5 of 6 rows; first frame 0 sees 6 instead of 1."
    )
    assert "visible only in the port" in wide.pictures[0]


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 900), (900, 1)])
def test_odd_sizes_are_drawn(shape: tuple[int, int]) -> None:
    ones = np.ones(shape, int)
    assert kv_figure(KvView("x", ones, ones, ones * 0.5)).title == "x"
    assert rope_figure(RopeView("x", ones, ones * 2)).title == "x"
    assert mask_figure(MaskView("x", ones, ones * 0)).title == "x"


def test_one_differing_cell_survives_reduction() -> None:
    big = np.zeros((3000, 2100))
    big[2999, 2099] = 4.0
    small, tall, wide = reduce_cells(big, 256)
    assert small.shape == (250, 234)
    assert (tall, wide) == (12, 9)
    assert small.max() == 4
    assert (small > 0).sum() == 1


def test_colours_separate_at_the_floor() -> None:
    colours = error_colours(np.array([[0.0, 5e-7, 2e-6, 1.0, np.inf, np.nan]]), 1e-6)
    red, alpha = colours[0, :, 0], colours[0, :, 3]
    assert alpha[5] == 0
    assert red[1] != red[2] == red[3] == red[4]
    assert alpha[2] < alpha[3] <= alpha[4] == 255


def test_only_what_differs_is_drawn() -> None:
    figures = worst_first([kv_figure(view) for view in media().kv])
    assert [f.title for f in figures.drawn] == ["blocks.2.kv"]
    assert figures.agreeing == tuple(f"blocks.{i}.kv" for i in (0, 1, 3, 4, 5))
    same = worst_first([kv_figure(media().kv[0])] * 3)
    assert len(same.drawn) == 1
    held = np.zeros((1, 2), int)
    many = worst_first([kv_figure(KvView(f"k{i}", held, held + 1, held + i / 10)) for i in range(9)])
    assert [f.title for f in many.drawn] == ["k8", "k7", "k6", "k5"]
    assert many.left_out == ("k4", "k3", "k2", "k1", "k0")


def test_layers_and_slots_in_one_map() -> None:
    drawn = kv_overview(media().kv)
    assert "layer blocks.2.kv, slot 0: 0.7, floor 1e-05" in drawn
    assert kv_overview(media().kv[:1]) == ""


def test_growth_marks_the_first_divergence() -> None:
    drawn = growth(diverged().rows)
    assert drawn.count("<circle") == 1
    assert "<title>blocks.2.attn.q_rope @ frame=1, step=0: 0.0547, floor 6.5e-06</title>" in drawn
    assert "first divergence" in drawn
    assert "frame 3" in drawn
    assert "first divergence" not in growth(match().rows)
    assert growth(()) == ""


def test_a_long_run_keeps_its_one_bad_record() -> None:
    base = rows(frames=20, steps=20)
    made = [replace(row, diverged=i == 8765, error=0.5 if i == 8765 else row.error) for i, row in enumerate(base)]
    drawn = growth(made)
    assert len(drawn) < 40_000
    assert ": 0.5, floor" in drawn


def test_axes_with_one_value_are_not_drawn() -> None:
    assert [axis for axis, _ in per_axis(rows(frames=3, steps=1))] == ["frame"]
    assert per_axis([replace(row, coords={}) for row in rows()]) == []


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [math.nan, math.inf, 0.0, 1e-300, 1e300], [-1.0, 5.0]])
@pytest.mark.parametrize("log", [True, False])
def test_charts_stay_inside_their_frame(values: list[float], log: bool) -> None:
    chart = Chart("c", (Series("s", [float(i) for i in range(len(values))], values),), log=log)
    drawn = draw(chart)
    found = re.findall(r"([\d.-]+),([\d.-]+)", " ".join(re.findall(r'points="([^"]*)"', drawn)))
    found += re.findall(r'cx="([^"]*)" cy="([^"]*)"', drawn)
    assert found
    assert all(0 <= float(x) <= chart.width and 0 <= float(y) <= chart.height for x, y in found)


def test_nothing_to_draw_is_nothing() -> None:
    assert draw(Chart("c", (Series("s", [0.0], [math.nan]),))) == ""
    assert draw(Chart("c", ())) == ""


def test_pairs_that_are_turned_otherwise() -> None:
    generator = np.random.default_rng(0)
    pairs = generator.normal(size=(9, 4)) + 1j * generator.normal(size=(9, 4))
    turned = pairs * np.exp(0.25j * np.arange(9))[:, None]

    def interleaved(z: np.ndarray) -> np.ndarray:
        return np.stack([z.real, z.imag], -1).reshape(9, 8)

    figure = pair_figure(PairView("q", interleaved(pairs), interleaved(turned)))
    assert figure.sentence.startswith("Pairs (2i, 2i + 1) keep their lengths.")
    assert "up to 2 radians, at 8 of 9 positions" in figure.sentence
    half = [np.concatenate([z.real, z.imag], 1) for z in (pairs, turned)]
    assert pair_figure(PairView("q", *half)).sentence.startswith("Pairs (i, i + d/2) keep their lengths.")
    mixed = pair_figure(PairView("q", interleaved(pairs), generator.normal(size=(9, 8))))
    assert mixed.sentence.startswith("Pairs keep their lengths in neither pairing")
    assert len(mixed.pictures) == 2
    same = pair_figure(PairView("q", half[0], half[0]))
    assert not same.differs
