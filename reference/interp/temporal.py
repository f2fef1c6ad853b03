"""Interpolation along time of flattened values (spec 4).

Precision: everything is computed in the dtype of the values, also the weights.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = (0.25, 0.5, 0.25)
MODES = ("linear", "smooth", "learned")


class TinyTemporalInterpolator(nn.Module):
    """Depth-wise convolutions over time, SiLU after each: `(b, t, d)` -> `(b, t, d)`."""

    def __init__(self, data_dim: int, kernel_size: int = 3, layers: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers):
            conv = nn.Conv1d(data_dim, data_dim, kernel_size, padding=kernel_size // 2, groups=data_dim)
            parts += [conv, nn.SiLU()]
        self.net = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(1, 2)).transpose(1, 2)


def enclosing(keyframes: list[int], t: int) -> int:
    """Position j of the segment [idx_j, idx_{j+1}] that frame t belongs to; the outermost one outside the range."""
    before = sum(1 for i in keyframes if i <= t)
    return min(max(before - 1, 0), len(keyframes) - 2)


def linear_one(keyframes: list[int], values: Tensor, frames: int) -> Tensor:
    """Interpolate the values `(K, d)` of one sample linearly: `(t, d)`; outside the keyframes the line goes on."""
    rows = []
    for t in range(frames):
        j = enclosing(keyframes, t)
        left, right = keyframes[j], keyframes[j + 1]
        weight = values.new_tensor(t - left) / values.new_tensor(max(right - left, 1))
        rows.append(values[j] + weight * (values[j + 1] - values[j]))
    for j, t in enumerate(keyframes):
        rows[t] = values[j]
    return torch.stack(rows)


def smooth(video: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlate every feature with `kernel` along time, zeros outside: `(b, t, d)`."""
    if len(kernel) % 2 == 0:
        raise ValueError(f"the smoothing kernel has {len(kernel)} weights; an odd number is needed")
    features = video.shape[-1]
    weight = kernel.to(video.dtype).expand(features, 1, -1)
    return F.conv1d(video.transpose(1, 2), weight, padding=len(kernel) // 2, groups=features).transpose(1, 2)


def interpolate(
    idx: Tensor,
    values: Tensor,
    frames: int,
    mode: str = "linear",
    model: nn.Module | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """Fill the frames between keyframes: idx `(b, K)` ascending, values `(b, K, d)` -> `(b, t, d)`.

    Keyframes come back bit for bit in every mode. Errors: ValueError for an unknown mode, K < 2, or a missing model.
    """
    if mode not in MODES:
        raise ValueError(f"unknown interpolation mode {mode!r}; there are {', '.join(MODES)}")
    if idx.shape[1] < 2:
        raise ValueError("interpolation needs at least two keyframes")
    if idx.shape != values.shape[:2]:
        raise ValueError(f"{tuple(idx.shape)} keyframes do not go with values {tuple(values.shape)}")
    keyframes = [row.tolist() for row in idx]
    video = torch.stack([linear_one(k, v, frames) for k, v in zip(keyframes, values, strict=True)])
    if mode == "linear":
        return video
    if mode == "smooth":
        video = smooth(video, torch.tensor(KERNEL) if kernel is None else kernel)
    else:
        if model is None:
            raise ValueError("mode 'learned' needs a model")
        video = model(video)
    for b, sample in enumerate(keyframes):
        for j, t in enumerate(sample):
            video[b, t] = values[b, j]
    return video


def interpolate_from_mask(video: Tensor, mask: Tensor) -> Tensor:
    """Interpolate between the kept frames of a video `(b, t, d)` segment by segment; frames outside stay as they are."""
    out = video.clone()
    for b in range(len(video)):
        kept = mask[b].nonzero().flatten().tolist()
        for a, c in itertools.pairwise(kept):
            for weight, t in zip(torch.linspace(0, 1, c - a + 1), range(a, c + 1), strict=True):
                if a < t < c:
                    out[b, t] = (1 - weight.to(video.dtype)) * video[b, a] + weight.to(video.dtype) * video[b, c]
    return out


def distance_weight(idx: Tensor, frames: int) -> Tensor:
    """How far a frame is from its keyframes, float32 `(b, t, 1)`: 0 at keyframes and outside, 1 in the middle of a gap."""
    weights = torch.zeros(len(idx), frames, 1)
    for b, row in enumerate(idx):
        keyframes = row.tolist()
        for t in range(frames):
            j = enclosing(keyframes, t)
            left, right = keyframes[j], keyframes[j + 1]
            weights[b, t, 0] = min(max(2 * min(t - left, right - t) / max(right - left, 1), 0.0), 1.0)
    return weights


def with_velocity(video: Tensor) -> Tensor:
    """Trajectories `(b, t, [x, y, vx, vy])`: velocities again from the interpolated positions, per clip length; the last is 0.

    Not in the text of section 4; the behaviour is that of its goldens.
    """
    out = video.clone()
    frames = video.shape[1]
    out[:, :-1, 2:4] = (video[:, 1:, :2] - video[:, :-1, :2]) * frames
    out[:, -1, 2:4] = 0
    return out
