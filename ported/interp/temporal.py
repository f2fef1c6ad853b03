"""Interpolation along time by search and gather (spec 4). Everything in the dtype of the values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMOOTHING = (0.25, 0.5, 0.25)


class TinyTemporalInterpolator(nn.Module):
    """Depth-wise Conv1d – SiLU, repeated, over `(b, t, d)`."""

    def __init__(self, data_dim: int, kernel_size: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for _ in range(layers):
            self.net.append(nn.Conv1d(data_dim, data_dim, kernel_size, padding=kernel_size // 2, groups=data_dim))
            self.net.append(nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mT).mT


def segments(idx: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segment number, left and right keyframe of every frame: int64 `(b, t)` each, from idx `(b, K)`."""
    t = torch.arange(frames, device=idx.device).expand(len(idx), frames).contiguous()
    number = (torch.searchsorted(idx.contiguous(), t, right=True) - 1).clamp(0, idx.shape[1] - 2)
    return number, idx.gather(1, number), idx.gather(1, number + 1)


def interpolate(
    idx: Tensor,
    values: Tensor,
    frames: int,
    mode: str = "linear",
    model: nn.Module | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """Values `(b, K, d)` at ascending keyframes `(b, K)` -> clip `(b, t, d)`, keyframes bit for bit.

    Errors: ValueError for an unknown mode, K < 2, or a missing model.
    """
    if mode not in ("linear", "smooth", "learned"):
        raise ValueError(f"unknown mode {mode!r}, expected linear, smooth or learned")
    if idx.shape[1] < 2 or idx.shape != values.shape[:2]:
        raise ValueError(f"keyframes {tuple(idx.shape)} and values {tuple(values.shape)}: two or more, in equal number")
    video = linear(idx, values, frames)
    if mode == "smooth":
        video = smooth(video, video.new_tensor(SMOOTHING) if kernel is None else kernel)
    elif mode == "learned":
        if model is None:
            raise ValueError("mode 'learned' needs a model")
        video = model(video)
    return restore(video, idx, values) if mode != "linear" else video


def linear(idx: Tensor, values: Tensor, frames: int) -> Tensor:
    """The piecewise linear clip; the outermost segments go on outside the keyframes."""
    number, left, right = segments(idx, frames)
    t = torch.arange(frames, device=idx.device)
    weight = (t - left).to(values.dtype) / (right - left).clamp(min=1).to(values.dtype)
    d = values.shape[-1]
    before = values.gather(1, number[..., None].expand(-1, -1, d))
    after = values.gather(1, (number + 1)[..., None].expand(-1, -1, d))
    return restore(before + weight[..., None] * (after - before), idx, values)


def restore(video: Tensor, idx: Tensor, values: Tensor) -> Tensor:
    """Write the keyframes back."""
    return video.scatter(1, idx[..., None].expand_as(values), values)


def smooth(video: Tensor, kernel: Tensor) -> Tensor:
    """Weighted sum of shifted copies, zeros outside, summed in float32 for half precision: `(b, t, d)`."""
    size = len(kernel)
    if size % 2 == 0:
        raise ValueError(f"a kernel of {size} weights: an odd number is needed")
    frames, half = video.shape[1], size // 2
    padded = nn.functional.pad(video.float(), (0, 0, half, half))
    weights = kernel.to(video.dtype).float()
    total = sum(weights[i] * padded[:, i : i + frames] for i in range(size))
    return total.to(video.dtype)


def interpolate_from_mask(video: Tensor, mask: Tensor) -> Tensor:
    """Interpolate between kept frames of a clip `(b, t, d)`, masks of any count; frames outside stay."""
    left, right = neighbours(mask)
    t = torch.arange(video.shape[1], device=video.device)
    inside = (left >= 0) & (right < video.shape[1]) & ~mask
    left, right = left.clamp(min=0), right.clamp(max=video.shape[1] - 1)
    weight = ((t - left).to(video.dtype) / (right - left).clamp(min=1).to(video.dtype))[..., None]
    index = [side[..., None].expand_as(video) for side in (left, right)]
    mixed = (1 - weight) * video.gather(1, index[0]) + weight * video.gather(1, index[1])
    return torch.where(inside[..., None], mixed, video)


def neighbours(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Last kept frame up to t (−1: none) and first kept frame from t on (T: none), int64 `(b, t)`."""
    frames = mask.shape[1]
    t = torch.arange(frames, device=mask.device)
    left = torch.where(mask, t, -1).cummax(dim=1).values
    right = torch.where(mask, t, frames).flip(1).cummin(dim=1).values.flip(1)
    return left, right


def distance_weight(idx: Tensor, frames: int) -> Tensor:
    """Distance from the nearer keyframe, 0 at keyframes, 1 in the middle of a gap: float32 `(b, t, 1)`."""
    _, left, right = segments(idx, frames)
    t = torch.arange(frames, device=idx.device)
    near = torch.minimum(t - left, right - t)
    return (2 * near.float() / (right - left).clamp(min=1).float()).clamp(0, 1)[..., None]


def with_velocity(video: Tensor) -> Tensor:
    """Trajectories `(b, t, [x, y, vx, vy])` with velocities from their positions, per clip length."""
    steps = nn.functional.pad(video[:, 1:, :2] - video[:, :-1, :2], (0, 0, 0, 1)) * video.shape[1]
    return torch.cat([video[..., :2], steps, video[..., 4:]], dim=-1)
