"""Differences of masks in words."""

import pytest
import torch

from parity.compare.masks import describe_mask

WORDS = {"latent frame": 1, "sub-frame": 0}


def mask():
    """`1111 0000 ... 0001`: 21 latent frames, 2x3 positions."""
    row = torch.zeros(4, 21)
    row[:, 0], row[3, 20] = 1, 1
    return row[:, :, None, None].repeat(1, 1, 2, 3)


def change(**places):
    """The mask with values put at (sub-frame, latent frame)."""
    port = mask()
    for place, value in places.values():
        port[place] = value
    return port


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (change(), ""),
        (change(a=((3, 20), 0)), "latent frame 20, sub-frame 3 is 0, should be 1"),
        (change(a=((slice(0, 3), 20), 1)), "latent frame 20, sub-frames 0 to 2 are 1, should be 0"),
        (
            change(a=((0, 0), 0), b=((2, 0), 0), c=((1, 4), 0.5)),
            (
                "latent frame 0, sub-frame 0 is 0, should be 1; latent frame 0, sub-frame 2 is 0, should be 1; "
                "latent frame 4, sub-frame 1 is 0.5, should be 0"
            ),
        ),
        (
            change(a=((1, 2, 0), 1)),
            "latent frame 2, sub-frame 1 is wrong at 3 of 6 positions, first 1 that should be 0",
        ),
        (
            1 - mask(),
            (
                "latent frame 0, sub-frames 0 to 3 are 0, should be 1; latent frame 1, sub-frames 0 to 3 are 1, should be 0; "
                "latent frame 2, sub-frames 0 to 3 are 1, should be 0; latent frame 3, sub-frames 0 to 3 are 1, should be 0; "
                "and 68 more"
            ),
        ),
    ],
)
def test_where_a_mask_differs(port, text):
    assert describe_mask(mask(), port, WORDS) == text


def test_integer_masks_of_one_axis():
    assert describe_mask(torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0]), {"frame": 0}) == "frame 1 is 0, should be 1"
