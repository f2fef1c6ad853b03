"""Local matching of tokens by entropic optimal transport with a dustbin, window by window (spec 5.4, steps 1 and 4).

Precision: float32 throughout, whatever the dtype of the latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FORBIDDEN = -1e4


def sinkhorn_log(logits: Tensor, iterations: int) -> Tensor:
    """Normalise a log matrix `(..., n+1, m+1)` by rows, then by columns, `iterations` times."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits


def window_coordinates(h: int, w: int) -> Tensor:
    """(x, y) of the tokens of a window, row-major, float32 `(h·w, 2)`."""
    return torch.tensor([[x, y] for y in range(h) for x in range(w)], dtype=torch.float32)


def window_logits(
    f0: Tensor, f1: Tensor, coordinates: Tensor, tau: Tensor, dustbin: Tensor, gamma: float, radius: float
) -> Tensor:
    """The `(n+1, n+1)` log matrix of one window: features `(n, d)` each, the dustbin last."""
    n, d = f0.shape
    matrix = dustbin.float().expand(n + 1, n + 1).clone()
    similarity = f0 @ f1.T / max(1, d) ** 0.5 / tau.float().clamp(min=1e-6)
    squared = ((coordinates[:, None] - coordinates[None]) ** 2).sum(dim=-1).to(f0)
    similarity = similarity - gamma * squared
    if radius > 0:
        similarity = similarity.masked_fill(squared > radius**2, FORBIDDEN)
    matrix[:n, :n] = similarity
    return matrix


def read_plan(plan: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean displacement `(n, 2)` of every token and its confidence `(n,)` from a plan `(n+1, n+1)`."""
    real = plan[:-1, :-1]
    mass = real.sum(dim=1, keepdim=True).clamp(min=1e-8)
    return real @ coordinates.to(real) / mass - coordinates.to(real), 1 - plan[:-1, -1]


class Windows:
    """The windows of a token map `(h, w)`: size, stride, and whether they overlap.

    Without overlap: tiles from the top left, the ragged ones at the right and bottom edge in their own size, listed as
    main tiles, right column, bottom row, corner. With overlap: the map is padded until the windows fit.
    """

    def __init__(self, h: int, w: int, size: int, stride: int) -> None:
        self.h, self.w, self.size = h, w, size
        self.stride = size if stride <= 0 else min(stride, size)
        self.overlapping = self.stride < size
        self.padding = (self.missing(w), self.missing(h)) if self.overlapping else (0, 0)

    def missing(self, length: int) -> int:
        """Tokens to add so that `length − size` is a multiple of the stride."""
        if length <= self.size:
            return self.size - length
        return -(length - self.size) % self.stride

    def groups(self) -> list[list[tuple[int, int, int, int]]]:
        """(y, x, height, width) of the windows, grouped by where they lie."""
        height, width = self.h + self.padding[1], self.w + self.padding[0]
        size = self.size
        if self.overlapping:
            ys, xs = (range(0, n - size + 1, self.stride) for n in (height, width))
            return [[(y, x, size, size) for y in ys for x in xs]]
        rows, columns = height // size * size, width // size * size
        ragged_h, ragged_w = height - rows, width - columns
        main = [(y, x, size, size) for y in range(0, rows, size) for x in range(0, columns, size)]
        right = [(y, columns, size, ragged_w) for y in range(0, rows, size)] if ragged_w else []
        bottom = [(rows, x, ragged_h, size) for x in range(0, columns, size)] if ragged_h else []
        corner = [(rows, columns, ragged_h, ragged_w)] if ragged_h and ragged_w else []
        return [group for group in (main, right, bottom, corner) if group]


def match_window(
    f0: Tensor, f1: Tensor, tau: Tensor, dustbin: Tensor, gamma: float, radius: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match the tokens of one window `(h, w, d)`: displacement `(h, w, 2)`, confidence `(h, w)`, logits and plan."""
    h, w = f0.shape[:2]
    coordinates = window_coordinates(h, w)
    logits = window_logits(
        rearrange(f0, "h w d -> (h w) d"),
        rearrange(f1, "h w d -> (h w) d"),
        coordinates.to(f0.device),
        tau,
        dustbin,
        gamma,
        radius,
    )
    plan = sinkhorn_log(logits, iterations).exp()
    delta, confidence = read_plan(plan, coordinates.to(f0.device))
    return delta.view(h, w, 2), confidence.view(h, w), logits, plan


def pad_map(f: Tensor, right: int, bottom: int) -> Tensor:
    """Repeat the last column and row of a map `(h, w, d)`."""
    if not right and not bottom:
        return f
    padded = F.pad(rearrange(f, "h w d -> 1 d h w"), (0, right, 0, bottom), mode="replicate")
    return rearrange(padded, "1 d h w -> h w d")
