"""Confidences, masks and frame features over the whole batch (spec 7). Confidences and features are float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ported.interp.temporal import neighbours


def anneal_factor(level: Tensor, levels: int, mode: str) -> Tensor:
    """λ of every sample, float32. Errors: ValueError for an unknown mode."""
    share = level.float() / levels
    if mode == "linear":
        return 1 - share
    if mode == "cosine":
        return 0.5 * (1 + torch.cos(math.pi * share))
    if mode == "none":
        return torch.zeros_like(share)
    raise ValueError(f"unknown annealing {mode!r}, expected linear, cosine or none")


def anneal_confidence(confidence: Tensor, level: Tensor, levels: int, mode: str = "linear") -> Tensor:
    """`conf + (1 − conf) λ`, λ over all trailing axes of a sample."""
    factor = anneal_factor(level, levels, mode).to(confidence.device)
    return confidence + (1 - confidence) * factor.view(-1, *[1] * (confidence.dim() - 1))


def mask_channels(mask_s: Tensor, mask_prev: Tensor | None, conf_s: Tensor | None) -> Tensor:
    """Masks and confidence as channels of the denoiser; a single mask as it is."""
    parts = [mask_s, *(part for part in (mask_prev, conf_s) if part is not None)]
    if len(parts) == 1:
        return mask_s.float()
    return torch.stack([part.float() for part in parts], dim=-1)


def frame_features(mask: Tensor, with_time: bool = True) -> Tensor:
    """t/(T−1), keyframe or not, α, gap/(T−1), distance: float32 `(b, t, 5 or 4)`."""
    frames = mask.shape[1]
    if frames <= 1:
        return torch.zeros(*mask.shape, 5 if with_time else 4, device=mask.device)
    t = torch.arange(frames, device=mask.device)
    mask = torch.where(mask.any(dim=1, keepdim=True), mask, (t == 0) | (t == frames - 1))
    left, right = neighbours(mask)
    left = torch.where(left < 0, mask.int().argmax(dim=1, keepdim=True), left)
    right = torch.where(right >= frames, frames - 1 - mask.flip(1).int().argmax(dim=1, keepdim=True), right)
    gap = (right - left).clamp(min=1).float()
    alpha = ((t - left) / gap).clamp(0, 1)
    near = torch.minimum((t - left).clamp(min=0), (right - t).clamp(min=0))
    time = (t.float() / (frames - 1)).expand(mask.shape)
    features = torch.stack((time, mask.float(), alpha, gap / (frames - 1), (2 * near / gap).clamp(0, 1)), dim=-1)
    return features if with_time else features[..., 1:]


def wan_frame_features(
    mask_s: Tensor, mask_prev: Tensor | None, conf_s: Tensor, conf_prev: Tensor | None, level: Tensor, levels: int
) -> Tensor:
    """Features of the frame tokens, `(b, t, 12)` with the finer level, `(b, t, 7)` without."""
    pooled = [c if c is None or c.dim() == 2 else c.mean(dim=-1) for c in (conf_s, conf_prev)]
    parts = [frame_features(mask_s)]
    if mask_prev is not None and pooled[1] is not None:
        parts.append(frame_features(mask_prev, with_time=False))
    else:
        pooled = pooled[:1]
    parts += [part.float().unsqueeze(-1) for part in pooled]
    share = (level.float() / levels).to(mask_s.device)
    return torch.cat([*parts, share[:, None, None].expand(*mask_s.shape, 1)], dim=-1)


class FrameProjector(nn.Module):
    """Linear – GELU – … – Linear; the last one starts at zero."""

    def __init__(self, feat_dim: int, text_dim: int, hidden_dim: int = 256, n_layers: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential()
        width = feat_dim
        for _ in range(n_layers - 1):
            self.net.append(nn.Linear(width, hidden_dim)).append(nn.GELU())
            width = hidden_dim
        last = nn.Linear(width, text_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net.append(last)

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)
