"""Sinkhorn matching of all windows of all pairs in one batched product (spec 5.4, step 4). Everything float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e4


def sinkhorn_log(logits: Tensor, iterations: int) -> Tensor:
    """Rows, then columns, in the log domain, by two running potentials instead of a new matrix: `(..., n+1, m+1)`."""
    rows = logits.new_zeros(*logits.shape[:-1], 1)
    columns = logits.new_zeros(*logits.shape[:-2], 1, logits.shape[-1])
    for _ in range(iterations):
        rows = -(logits + columns).logsumexp(dim=-1, keepdim=True)
        columns = -(logits + rows).logsumexp(dim=-2, keepdim=True)
    return logits + rows + columns


def window_coordinates(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """(x, y) of every token of a window `(h·w, 2)`."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()


def window_logits(
    f0: Tensor, f1: Tensor, coordinates: Tensor, tau: Tensor, dustbin: Tensor, gamma: float, radius: float
) -> Tensor:
    """Log matrices of windows `(m, n, d)` with the dustbin in the last row and column: `(m, n+1, n+1)`."""
    d = f0.shape[-1]
    similarity = torch.bmm(f0, f1.mT) / max(1, d) ** 0.5 / tau.float().clamp(min=1e-6)
    if gamma or radius > 0:
        squared = (coordinates[:, None] - coordinates).square().sum(dim=-1)
        similarity = similarity - gamma * squared
        if radius > 0:
            similarity = torch.where(squared > radius**2, NEVER, similarity)
    m, n, _ = similarity.shape
    whole = dustbin.float().expand(m, n + 1, n + 1).clone()
    whole[:, :n, :n] = similarity
    return whole


def read_plan(plan: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean displacement `(m, n, 2)` and confidence `(m, n)` of plans `(m, n+1, n+1)`."""
    real = plan[:, :-1, :-1]
    target = real @ coordinates / real.sum(dim=-1, keepdim=True).clamp(min=1e-8)
    return target - coordinates, 1 - plan[:, :-1, -1]


def match_windows(
    f0: Tensor, f1: Tensor, size: tuple[int, int], settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match windows `(m, n, d)` of one size: displacement, confidence, logits, plan."""
    coordinates = window_coordinates(*size, device=f0.device)
    logits = window_logits(f0, f1, coordinates, settings.tau, settings.dustbin, settings.gamma, settings.radius)
    plan = sinkhorn_log(logits, settings.iterations).exp()
    return *read_plan(plan, coordinates), logits, plan


class Settings:
    """What matching needs besides features."""

    def __init__(self, tau: Tensor, dustbin: Tensor, gamma: float, radius: float, iterations: int) -> None:
        self.tau, self.dustbin, self.gamma, self.radius, self.iterations = tau, dustbin, gamma, radius, iterations


def tile(f: Tensor, a: int, b: int) -> Tensor:
    """Cut maps `(p, y·a, x·b, d)` into windows `(p·y·x, a·b, d)`."""
    p, h, w, d = f.shape
    cut = f.reshape(p, h // a, a, w // b, b, d).transpose(2, 3)
    return cut.reshape(-1, a * b, d)


def untile(windows: Tensor, shape: tuple[int, int, int], a: int, b: int) -> Tensor:
    """The inverse, `(p, h, w, d)`."""
    p, h, w = shape
    back = windows.reshape(p, h // a, w // b, a, b, -1).transpose(2, 3)
    return back.reshape(p, h, w, -1)


def match_tiles(f0: Tensor, f1: Tensor, size: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Non-overlapping windows; those at the right and bottom edge have their own size."""
    p, h, w, _ = f0.shape
    rows, columns = h // size * size, w // size * size
    out = f0.new_zeros(p, h, w, 3)
    for ys, a in ((slice(0, rows), size), (slice(rows, h), h - rows)):
        for xs, b in ((slice(0, columns), size), (slice(columns, w), w - columns)):
            part0, part1 = f0[:, ys, xs], f1[:, ys, xs]
            if part0.numel() == 0:
                continue
            delta, trust, *_ = match_windows(tile(part0, a, b), tile(part1, a, b), (a, b), settings)
            both = torch.cat((delta, trust[..., None]), dim=-1)
            out[:, ys, xs] = untile(both, (p, part0.shape[1], part0.shape[2]), a, b)
    return out[..., :2], out[..., 2]


def match_overlapping(f0: Tensor, f1: Tensor, size: int, stride: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Overlapping windows by unfold and fold, averaged by confidence."""
    p, h, w, d = f0.shape
    pad = [size - n if n <= size else -(n - size) % stride for n in (w, h)]
    full = (h + pad[1], w + pad[0])

    def windows(f: Tensor) -> Tensor:
        padded = F.pad(f.permute(0, 3, 1, 2), (0, pad[0], 0, pad[1]), mode="replicate")
        cut = F.unfold(padded, size, stride=stride).unflatten(1, (d, size * size))
        return cut.permute(0, 3, 2, 1).reshape(-1, size * size, d)

    delta, trust, *_ = match_windows(windows(f0), windows(f1), (size, size), settings)
    parts = torch.cat((delta * trust[..., None], trust[..., None], torch.ones_like(trust)[..., None]), dim=-1)
    flat = parts.unflatten(0, (p, -1)).permute(0, 3, 2, 1).reshape(p, 4 * size * size, -1)
    total = F.fold(flat, full, size, stride=stride).permute(0, 2, 3, 1)[:, :h, :w]
    return total[..., :2] / total[..., 2:3].clamp(min=1e-8), (total[..., 2] / total[..., 3]).clamp(0, 1)
