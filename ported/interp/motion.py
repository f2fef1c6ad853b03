"""Global motion of many pairs at once (spec 5.4, step 2). Maps are channel-last `(pairs, h, w, c)`, float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Motion(NamedTuple):
    """Rotation and shift in tokens, `(pairs,)` each."""

    theta: Tensor
    dx: Tensor
    dy: Tensor


def still(like: Tensor) -> Motion:
    """No motion for every pair."""
    return Motion(*like.new_zeros(3, len(like)))


def affine(motion: Motion, h: int, w: int) -> Tensor:
    """Matrices on normalised coordinates `(n, 2, 3)`."""
    theta, dx, dy = motion
    cos, sin = theta.cos(), theta.sin()
    tx = 2 * dx / (w - 1) if w > 1 else torch.zeros_like(dx)
    ty = 2 * dy / (h - 1) if h > 1 else torch.zeros_like(dy)
    return torch.stack((cos, -sin, tx, sin, cos, ty), dim=-1).unflatten(-1, (2, 3))


def resample(maps: Tensor, motion: Motion) -> Tensor:
    """Read maps `(n, h, w, c)` at moved places, zeros outside."""
    n, h, w, c = maps.shape
    grid = F.affine_grid(affine(motion, h, w).to(maps.dtype), [n, c, h, w], align_corners=True)
    image = maps.permute(0, 3, 1, 2)
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=True).permute(0, 2, 3, 1)


def candidates(angles: Sequence[float], shift_range: int, like: Tensor) -> Motion:
    """All motions of the search in its order, angle outermost, dx innermost."""
    shifts = torch.arange(-shift_range, shift_range + 1, dtype=like.dtype, device=like.device)
    theta = torch.tensor([math.radians(a) for a in angles], dtype=like.dtype, device=like.device)
    grid = torch.meshgrid(theta, shifts, shifts, indexing="ij")
    return Motion(grid[0].flatten(), grid[2].flatten(), grid[1].flatten())


def search(f0: Tensor, f1: Tensor, angles: Sequence[float], shift_range: int, chunk: int) -> Motion:
    """Score motions on the channel means, `chunk` of them for all pairs at a time; the first best one stays."""
    score0, score1 = f0.mean(dim=-1, keepdim=True), f1.mean(dim=-1, keepdim=True)
    tried = candidates(angles, shift_range, f0)
    pairs = len(f0)
    best = torch.full((pairs,), -math.inf, device=f0.device, dtype=f0.dtype)
    found = torch.zeros(pairs, dtype=torch.long, device=f0.device)
    for first in range(0, len(tried.theta), chunk):
        part = [values[first : first + chunk] for values in tried]
        count = len(part[0])
        moved = resample(score1.repeat_interleave(count, dim=0), Motion(*(values.repeat(pairs) for values in part)))
        scores = (moved.unflatten(0, (pairs, count)) * score0[:, None]).mean(dim=(2, 3, 4))
        top = scores.amax(dim=1)
        where = (scores == top[:, None]).int().argmax(dim=1) + first
        better = top > best
        best, found = torch.where(better, top, best), torch.where(better, where, found)
    return Motion(*(values[found] for values in tried))


def roll_shift(m0: Tensor, m1: Tensor) -> tuple[Tensor, Tensor]:
    """Phase correlation of maps `(n, h, w, c)`: rolls (x, y) `(n, 2)` and peaks `(n,)`."""
    h, w = m0.shape[1:3]
    spectra = [torch.fft.rfft2(m - m.mean(dim=(1, 2), keepdim=True), dim=(1, 2)) for m in (m0, m1)]
    cross = (spectra[0] * spectra[1].conj()).sum(dim=-1)
    surface = torch.fft.irfft2(cross / (cross.abs() + 1e-6), s=(h, w), dim=(1, 2)).flatten(1)
    peak, at = surface.max(dim=1)
    y, x = at // w, at % w
    x, y = torch.where(x > w // 2, x - w, x), torch.where(y > h // 2, y - h, y)
    return torch.stack((x, y), dim=-1).to(surface.dtype), peak


def translation(theta: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """−R(θ)·s: what must be read to undo a roll."""
    cos, sin = theta.cos(), theta.sin()
    sx, sy = shift.unbind(dim=-1)
    return -(cos * sx - sin * sy), -(sin * sx + cos * sy)


def phase_correlate(m0: Tensor, m1: Tensor, angles: Sequence[float], unit: Tensor | float = 1.0) -> Motion:
    """Try every angle for all pairs; the first of the highest peaks stays. `unit`: pixels of the maps a token, (x, y)."""
    best = still(m0[:, 0, 0, 0])
    best_peak = torch.full_like(best.theta, -math.inf)
    for angle in angles:
        theta = torch.full_like(best.theta, math.radians(angle))
        zero = torch.zeros_like(theta)
        shift, peak = roll_shift(m0, resample(m1, Motion(theta, zero, zero)))
        tried = Motion(theta, *translation(theta, shift / unit))
        better = peak > best_peak
        best = Motion(*(torch.where(better, new, old) for new, old in zip(tried, best, strict=True)))
        best_peak = torch.where(better, peak, best_peak)
    return best


def compose(delta: Tensor, motion: Motion) -> Tensor:
    """Local displacement `(pairs, h, w, 2)` on top of the motion, in tokens."""
    h, w = delta.shape[1:3]
    theta, dx, dy = (part[:, None, None] for part in motion)
    cos, sin = theta.cos(), theta.sin()
    x = torch.arange(w, dtype=delta.dtype, device=delta.device)
    y = torch.arange(h, dtype=delta.dtype, device=delta.device)[:, None]
    px, py = x - (w - 1) / 2 + delta[..., 0], y - (h - 1) / 2 + delta[..., 1]
    flow_x = cos * px - sin * py + (w - 1) / 2 + dx - x
    flow_y = sin * px + cos * py + (h - 1) / 2 + dy - y
    return torch.stack((flow_x, flow_y), dim=-1)
