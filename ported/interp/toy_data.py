"""Moving squares and circles (spec 11)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Shape:
    """One object: a square or a disc that bounces."""

    square: bool
    radius: int
    centre: np.ndarray  # x, y
    speed: np.ndarray
    colour: np.ndarray

    def covers(self, size: int) -> np.ndarray:
        """Where it lies, bool `(size, size)`."""
        rows, columns = np.ogrid[:size, :size]
        dx, dy = columns - self.centre[0], rows - self.centre[1]
        if self.square:
            return np.maximum(abs(dx), abs(dy)) <= self.radius
        return dx * dx + dy * dy <= self.radius**2

    def move(self, size: int) -> None:
        """One frame on; the speed turns where the centre would leave."""
        ahead = self.centre + self.speed
        out = (ahead < self.radius) | (ahead > size - 1 - self.radius)
        self.speed = np.where(out, -self.speed, self.speed)
        self.centre = self.centre + self.speed


def draw_shape(rng: np.random.RandomState, size: int) -> Shape:
    """Draw one object, its numbers in the order of the data set."""
    square = bool(rng.rand() < 0.5)
    radius = int(rng.randint(3, 9))
    centre = np.array([rng.randint(radius, size - radius), rng.randint(radius, size - radius)])
    speed = np.array([rng.choice([-2, -1, 1, 2]), rng.choice([-2, -1, 1, 2])])
    return Shape(square, radius, centre, speed, rng.uniform(0.2, 1.0, size=3))


def moving_shapes(index: int, frames: int = 16, size: int = 32, seed: int = 0) -> Tensor:
    """Clip `index`: float32 `(t, 3, size, size)` in [0, 1]."""
    rng = np.random.RandomState(seed + index)
    shapes = [draw_shape(rng, size) for _ in range(int(rng.choice([1, 2, 3])))]
    clip = np.zeros((frames, size, size, 3), dtype=np.float32)
    for picture in clip:
        for shape in shapes:
            picture[shape.covers(size)] = shape.colour
            shape.move(size)
    return torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous()


def flat_clips(
    first: int, count: int, frames: int = 16, latent_size: int = 16, size: int = 32, seed: int = 0
) -> Tensor:
    """Clips shrunk and flattened: `(count, t, 3·latent_size²)`."""
    clips = torch.cat([moving_shapes(first + i, frames, size, seed) for i in range(count)])
    small = F.interpolate(clips, size=(latent_size,) * 2, mode="bilinear", align_corners=False)
    return small.flatten(1).unflatten(0, (count, frames))
