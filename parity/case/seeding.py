"""Fixed latents: a counter-based generator that gives the same numbers on every machine, in any order, with no global state.

Value i of stream (seed, name) depends on nothing else: splitmix64 of the counter, then Box-Muller in float64, then rounded. So a port on another
device, another framework version or another language draws the same noise.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(counter: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = counter * _GOLDEN + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """Return `count` float64 numbers in (0, 1) of the stream (seed, name)."""
    stream = _splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(name.encode())], dtype=np.uint64))
    with np.errstate(over="ignore"):
        base = stream[0] ^ (stream[1] * np.uint64(3))
        bits = _splitmix64(base + np.arange(count, dtype=np.uint64))
    return (np.asarray(bits >> np.uint64(11), dtype=np.float64) + 0.5) * 2.0**-53


def normal(shape: Sequence[int], seed: int, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers of the stream (seed, name), shape `shape`.

    >>> normal((2, 3), seed=0, name="noise").shape
    torch.Size([2, 3])
    """
    count = int(np.prod(shape, dtype=np.int64))
    u = uniform(seed, name, 2 * count)
    values = np.sqrt(-2.0 * np.log(u[:count])) * np.cos(2.0 * np.pi * u[count:])
    # One rounding through float32 hides the last-digit differences of math libraries.
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape))).to(dtype)


def integers(shape: Sequence[int], high: int, seed: int, name: str) -> Tensor:
    """Return int64 numbers in [0, high) of the stream (seed, name)."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy((uniform(seed, name, count) * high).astype(np.int64).reshape(tuple(shape)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let a run draw the same random numbers every time, and give back the state that was there before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
