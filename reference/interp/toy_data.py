"""Moving squares and circles: the toy video data (spec 11)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def moving_shapes(index: int, frames: int = 16, size: int = 32, seed: int = 0) -> Tensor:
    """Render clip `index`: float32 `(t, 3, size, size)` in [0, 1]. Later objects paint over earlier ones."""
    rng = np.random.RandomState(seed + index)
    shapes = []
    for _ in range(int(rng.choice([1, 2, 3]))):
        square = rng.rand() < 0.5
        radius = int(rng.randint(3, 9))
        x, y = int(rng.randint(radius, size - radius)), int(rng.randint(radius, size - radius))
        vx, vy = int(rng.choice([-2, -1, 1, 2])), int(rng.choice([-2, -1, 1, 2]))
        shapes.append([square, radius, x, y, vx, vy, rng.uniform(0.2, 1.0, size=3)])
    clip = np.zeros((frames, 3, size, size), dtype=np.float32)
    rows, columns = np.mgrid[0:size, 0:size]
    for t in range(frames):
        for shape in shapes:
            square, radius, x, y, vx, vy, colour = shape
            if square:
                inside = (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
            else:
                inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            clip[t][:, inside] = colour[:, None]
            for place, speed in ((2, 4), (3, 5)):
                moved = shape[place] + shape[speed]
                if not radius <= moved <= size - 1 - radius:
                    shape[speed] = -shape[speed]
                    moved = shape[place] + shape[speed]
                shape[place] = moved
    return torch.from_numpy(clip)


def flat_clips(
    first: int, count: int, frames: int = 16, latent_size: int = 16, size: int = 32, seed: int = 0
) -> Tensor:
    """Clips shrunk to latent_size² and flattened channel-first: `(count, t, 3·latent_size²)`."""
    clips = [moving_shapes(index, frames, size, seed) for index in range(first, first + count)]
    small = [F.interpolate(c, size=(latent_size, latent_size), mode="bilinear", align_corners=False) for c in clips]
    return torch.stack(small).flatten(2)
