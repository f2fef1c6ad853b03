"""What tells the refiner which frames are given and how far it may trust them (spec 7).

Precision: confidences and frame features are float32; frame tokens have the dtype of the text.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

ANNEALING = ("linear", "cosine", "none")


def anneal_factor(level: float, levels: int, mode: str) -> float:
    """λ(s): 0 at the coarsest level, 1 at level 0 (mode none: always 0). Errors: ValueError for an unknown mode."""
    if mode not in ANNEALING:
        raise ValueError(f"unknown annealing {mode!r}; there are {', '.join(ANNEALING)}")
    if mode == "linear":
        return 1 - level / levels
    return 0.5 * (1 + math.cos(math.pi * level / levels)) if mode == "cosine" else 0.0


def anneal_confidence(confidence: Tensor, level: Tensor, levels: int, mode: str = "linear") -> Tensor:
    """`conf + (1 − conf) λ(level)`, one level a sample: `(b, t)` or `(b, t, n)`, levels `(b,)`."""
    rows = []
    for conf, s in zip(confidence, level.tolist(), strict=True):
        rows.append(conf + (1 - conf) * anneal_factor(s, levels, mode))
    return torch.stack(rows)


def mask_channels(mask_s: Tensor, mask_prev: Tensor | None, conf_s: Tensor | None) -> Tensor:
    """Stack what the denoiser sees of the masks on a last axis, float32: masks, then the confidence of level s.

    A single mask needs no axis of its own.
    """
    parts = [part for part in (mask_s, mask_prev, conf_s) if part is not None]
    if len(parts) == 1:
        return mask_s.float()
    return torch.stack([part.float() for part in parts], dim=-1)


def frame_features(mask: Tensor, with_time: bool = True) -> Tensor:
    """Where every frame stands between its keyframes: bool `(b, t)` -> float32 `(b, t, 5 or 4)`.

    Features: t/(T−1), is a keyframe, α, gap/(T−1), distance from the nearer keyframe. A sample without keyframes counts
    as having the two ends.
    """
    batch, frames = mask.shape
    features = torch.zeros(batch, frames, 5)
    if frames > 1:
        for b in range(batch):
            keyframes = mask[b].nonzero().flatten().tolist() or [0, frames - 1]
            for t in range(frames):
                features[b, t] = torch.tensor(features_of_frame(t, keyframes, frames))
    return (features if with_time else features[..., 1:]).to(mask.device)


def features_of_frame(t: int, keyframes: list[int], frames: int) -> list[float]:
    """The five features of frame t."""
    left = max((i for i in keyframes if i <= t), default=keyframes[0])
    right = min((i for i in keyframes if i >= t), default=keyframes[-1])
    gap = max(right - left, 1)
    alpha = min(max((t - left) / gap, 0.0), 1.0)
    middle = min(max(2 * min(max(t - left, 0), max(right - t, 0)) / gap, 0.0), 1.0)
    return [t / (frames - 1), float(t in keyframes), alpha, gap / (frames - 1), middle]


def over_tokens(confidence: Tensor) -> Tensor:
    """Mean over the tokens of a frame: `(b, t, n)` -> `(b, t)`; a map without tokens stays."""
    return confidence.mean(dim=-1) if confidence.dim() == 3 else confidence


def wan_frame_features(
    mask_s: Tensor, mask_prev: Tensor | None, conf_s: Tensor, conf_prev: Tensor | None, level: Tensor, levels: int
) -> Tensor:
    """Features for the frame tokens, float32: `(b, t, 12)` with a finer level, `(b, t, 7)` without; level `(b,)`."""
    parts = [frame_features(mask_s)]
    if mask_prev is not None and conf_prev is not None:
        parts += [frame_features(mask_prev, with_time=False), over_tokens(conf_s)[..., None]]
        parts.append(over_tokens(conf_prev)[..., None])
    else:
        parts.append(over_tokens(conf_s)[..., None])
    share = (level.float() / levels).view(-1, 1, 1).expand(*mask_s.shape, 1)
    return torch.cat([*(part.float() for part in parts), share], dim=-1)


class FrameProjector(nn.Module):
    """Features of a frame to one text token, `(b, t, f)` -> `(b, t, text_dim)`; the last layer starts at zero.

    Zero tokens are not nothing: they pass the text embedding and take part in the softmax of the cross attention.
    """

    def __init__(self, feat_dim: int, text_dim: int, hidden_dim: int = 256, n_layers: int = 2) -> None:
        super().__init__()
        widths = [feat_dim, *[hidden_dim] * (n_layers - 1), text_dim]
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.GELU()]
        self.net = nn.Sequential(*parts[:-1])
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)
