"""Rotary tables and their application (spec A5)."""

import math

import pytest
import torch

from reference.wan import rope


@pytest.mark.parametrize(
    ("head_dim", "pairs"),
    [
        (128, (22, 21, 21)),
        (16, (4, 2, 2)),
        (20, (4, 3, 3)),
        (24, (4, 4, 4)),
        (32, (6, 5, 5)),
        (40, (8, 6, 6)),
        (28, (6, 4, 4)),
    ],
)
def test_axis_split_of_every_head_width_in_the_specification(head_dim, pairs):
    assert tuple(w // 2 for w in rope.axis_widths(head_dim)) == pairs
    assert rope.table(head_dim).shape == (1024, head_dim // 2)


def test_table_entries_are_float64_angles_of_each_axis_own_width():
    table = rope.table(40)
    assert table.dtype == torch.complex128
    # position 1000, third pair of the time axis (width 16), second pair of the height axis (width 12)
    for column, angle in ((2, 1000 * 10000 ** (-4 / 16)), (8 + 1, 1000 * 10000 ** (-2 / 12))):
        want = complex(math.cos(angle), math.sin(angle))
        assert abs(complex(table[1000, column]) - want) < 1e-11


def test_grid_takes_time_height_and_width_from_their_own_positions():
    freqs, (f, h, w) = rope.table(16), (2, 3, 4)
    grid = rope.grid_frequencies(freqs, (f, h, w))
    token = (1 * h + 2) * w + 3  # (f, h, w) = (1, 2, 3), w fastest
    want = torch.cat([freqs[1, :4], freqs[2, 4:6], freqs[3, 6:8]])
    assert torch.equal(grid[token], want)


def test_adjacent_pairs_rotate_and_rows_beyond_the_grid_are_copied():
    x = torch.randn(2, 30, 3, 16, generator=torch.Generator().manual_seed(0))
    grids = torch.tensor([[2, 3, 4], [1, 5, 6]])
    y = rope.apply(x, grids, rope.table(16))
    assert y.dtype == torch.float32
    assert torch.equal(y[0, 24:], x[0, 24:])
    assert torch.equal(y[1, 0], x[1, 0])  # position 0 turns nothing
    assert not torch.equal(y[1, 29], x[1, 29])
    # token (0, 0, 1) of sample 1: only the width axis, pair 6 = elements 12 and 13, angle 1
    a, b = x[1, 1, 2, 12].item(), x[1, 1, 2, 13].item()
    assert y[1, 1, 2, 12].item() == pytest.approx(a * math.cos(1) - b * math.sin(1), abs=1e-6)
    assert y[1, 1, 2, 13].item() == pytest.approx(a * math.sin(1) + b * math.cos(1), abs=1e-6)
    assert torch.equal(y[1, 1, :, :12], x[1, 1, :, :12])


def test_half_precision_input_is_rotated_in_float64():
    x = torch.randn(1, 24, 2, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    grids, freqs = torch.tensor([[2, 3, 4]]), rope.table(24)
    assert torch.equal(rope.apply(x, grids, freqs), rope.apply(x.double(), grids, freqs))
