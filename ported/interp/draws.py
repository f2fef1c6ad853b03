"""Random numbers, drawn in one fixed order from two streams, or replayed (spec 6.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Draws:
    """`masks` drives keyframes and decisions, `noise` everything Gaussian; both are explicit generators."""

    def __init__(self, masks: torch.Generator, noise: torch.Generator) -> None:
        self.masks, self.noise = masks, noise

    @classmethod
    def seeded(cls, masks: int, noise: int) -> Draws:
        """Generators on the CPU, so that every device draws the same numbers."""
        generators = [torch.Generator(device="cpu") for _ in range(2)]
        for generator, seed in zip(generators, (masks, noise), strict=True):
            generator.manual_seed(seed)
        return cls(*generators)

    @staticmethod
    def replay(tensors: Iterable[Tensor]) -> Recorded:
        """Recorded draws instead of generators."""
        return Recorded(tensors)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(shape, generator=self.masks)

    def randint(self, low: int, high: int, count: int) -> Tensor:
        """Integers in [low, high)."""
        return torch.randint(low, high, (count,), generator=self.masks)

    def randperm(self, count: int) -> Tensor:
        """A permutation."""
        return torch.randperm(count, generator=self.masks)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, drawn in float32 whatever the dtype."""
        return torch.randn(tuple(shape), generator=self.noise).to(dtype)


class Recorded(Draws):
    """The next recorded tensor for every draw."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.left = deque(tensors)

    def _next(self, shape: Sequence[int]) -> Tensor:
        if not self.left:
            raise ValueError(f"no recorded draw is left for shape {tuple(shape)}")
        if tuple(self.left[0].shape) != tuple(shape):
            raise ValueError(f"the next recorded draw has shape {tuple(self.left[0].shape)}, not {tuple(shape)}")
        return self.left.popleft()

    def rand(self, *shape: int) -> Tensor:
        return self._next(shape)

    def randint(self, low: int, high: int, count: int) -> Tensor:
        return self._next((count,))

    def randperm(self, count: int) -> Tensor:
        return self._next((count,))

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._next(shape).to(dtype)
