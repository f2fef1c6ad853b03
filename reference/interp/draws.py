"""Random numbers of the forward process (spec 6.3): two streams in a fixed order, or draws that were recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """A source of random numbers.

    `masks` drives keyframes, levels and which keyframes are replaced; `noise` drives everything Gaussian. Numbers are
    drawn in float32 and rounded to the dtype that is asked for, so that every dtype sees the same ones.
    """

    def __init__(self, masks: torch.Generator, noise: torch.Generator) -> None:
        self.masks, self.noise = masks, noise

    @classmethod
    def seeded(cls, masks: int, noise: int) -> Draws:
        """Two generators on the CPU with the given seeds."""
        return cls(torch.Generator("cpu").manual_seed(masks), torch.Generator("cpu").manual_seed(noise))

    @staticmethod
    def replay(tensors: Sequence[Tensor]) -> Replay:
        """The recorded draws, in the order in which they were made."""
        return Replay(tensors)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32."""
        return torch.rand(shape, generator=self.masks)

    def randint(self, low: int, high: int, count: int) -> Tensor:
        """`count` integers in [low, high), int64."""
        return torch.randint(low, high, (count,), generator=self.masks)

    def randperm(self, count: int) -> Tensor:
        """A permutation of 0..count-1, int64."""
        return torch.randperm(count, generator=self.masks)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(tuple(shape), generator=self.noise).to(dtype)


class Replay(Draws):
    """Recorded draws: each call takes the next tensor, whose shape must be the one asked for (ValueError)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors, self.position = list(tensors), 0

    def take(self, shape: Sequence[int]) -> Tensor:
        """Return the next recorded tensor."""
        if self.position >= len(self.tensors):
            raise ValueError(
                f"draw {self.position} of shape {tuple(shape)}: only {len(self.tensors)} draws were recorded"
            )
        found = self.tensors[self.position]
        if tuple(found.shape) != tuple(shape):
            raise ValueError(f"draw {self.position}: shape {tuple(shape)} asked for, {tuple(found.shape)} recorded")
        self.position += 1
        return found

    def rand(self, *shape: int) -> Tensor:
        return self.take(shape)

    def randint(self, low: int, high: int, count: int) -> Tensor:
        return self.take((count,))

    def randperm(self, count: int) -> Tensor:
        return self.take((count,))

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return self.take(shape).to(dtype)
