"""Global motion between two token maps: rotation and shift, by search or by phase correlation (spec 5.4, step 2).

Maps are channel-last `(h, w, c)`, float32. A motion is (θ, dx, dy) with the shift in tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Motion(NamedTuple):
    """Rotation in radians and shift in tokens, float32 scalars."""

    theta: Tensor
    dx: Tensor
    dy: Tensor


def still(like: Tensor) -> Motion:
    """No motion."""
    return Motion(*(torch.zeros((), device=like.device) for _ in range(3)))


def resample(m: Tensor, motion: Motion) -> Tensor:
    """Read a map `(h, w, c)` at rotated and shifted places, zeros outside.

    The matrix acts on normalised coordinates, so that a rotation of a map that is not square is sheared.
    """
    h, w = m.shape[:2]
    theta, dx, dy = motion
    cos, sin = torch.cos(theta), torch.sin(theta)
    tx = 2 * dx / (w - 1) if w > 1 else torch.zeros_like(dx)
    ty = 2 * dy / (h - 1) if h > 1 else torch.zeros_like(dy)
    matrix = torch.stack([torch.stack([cos, -sin, tx]), torch.stack([sin, cos, ty])])[None].to(m.dtype)
    grid = F.affine_grid(matrix, [1, m.shape[2], h, w], align_corners=True)
    image = rearrange(m, "h w c -> 1 c h w")
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return rearrange(out, "1 c h w -> h w c")


def search(f0: Tensor, f1: Tensor, angles: list[float], shift_range: int) -> Motion:
    """Try every angle and shift on the mean over channels; the first of the best products wins."""
    score0, score1 = f0.mean(dim=-1, keepdim=True), f1.mean(dim=-1, keepdim=True)
    best, best_score = still(f0), -math.inf
    for angle in angles:
        theta = torch.tensor(math.radians(angle), device=f0.device)
        for dy in range(-shift_range, shift_range + 1):
            for dx in range(-shift_range, shift_range + 1):
                motion = Motion(theta, theta.new_tensor(dx), theta.new_tensor(dy))
                score = (resample(score1, motion) * score0).mean().item()
                if score > best_score:
                    best, best_score = motion, score
    return best


def roll_shift(m0: Tensor, m1: Tensor) -> tuple[Tensor, Tensor]:
    """Phase correlation of two maps `(h, w, c)`: the roll (x, y) that explains m1, and the height of its peak."""
    h, w = m0.shape[:2]
    spectrum0, spectrum1 = (torch.fft.rfft2(rearrange(m - m.mean(dim=(0, 1)), "h w c -> c h w")) for m in (m0, m1))
    cross = (spectrum0 * spectrum1.conj()).sum(dim=0)
    surface = torch.fft.irfft2(cross / (cross.abs() + 1e-6), s=(h, w))
    y, x = divmod(int(surface.flatten().argmax()), w)
    shift = [x - w if x > w // 2 else x, y - h if y > h // 2 else y]
    return surface.new_tensor(shift), surface.max()


def phase_correlate(m0: Tensor, m1: Tensor, angles: list[float], unit: float = 1.0) -> Motion:
    """Rotate m1 by every angle, correlate, keep the highest peak; `unit` is the size of a token in pixels of the maps.

    The translation is −R(θ) times the roll: sampling moves against the content.
    """
    best, best_peak = still(m0), -math.inf
    for angle in angles:
        theta = torch.tensor(math.radians(angle), device=m0.device)
        zero = torch.zeros_like(theta)
        shift, peak = roll_shift(m0, resample(m1, Motion(theta, zero, zero)))
        if peak.item() > best_peak:
            sx, sy = shift / unit
            cos, sin = torch.cos(theta), torch.sin(theta)
            best, best_peak = Motion(theta, -(cos * sx - sin * sy), -(sin * sx + cos * sy)), peak.item()
    return best


def compose(delta: Tensor, motion: Motion) -> Tensor:
    """Add a local displacement `(h, w, 2)` to a global motion: `R(θ)(x − c + δ) + c + t − x`, in tokens."""
    h, w = delta.shape[:2]
    theta, dx, dy = motion
    cos, sin = torch.cos(theta), torch.sin(theta)
    flow = torch.zeros_like(delta)
    for y in range(h):
        for x in range(w):
            px, py = x - (w - 1) / 2 + delta[y, x, 0], y - (h - 1) / 2 + delta[y, x, 1]
            flow[y, x, 0] = cos * px - sin * py + (w - 1) / 2 + dx - x
            flow[y, x, 1] = sin * px + cos * py + (h - 1) / 2 + dy - y
    return flow
