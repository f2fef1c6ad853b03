"""The forward process, all samples of a level at once (spec 6). Results keep the dtype of the clean input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ported.interp import patches, temporal
from ported.interp.draws import Draws
from ported.interp.masks import nested_masks
from ported.interp.replacement import Anchors, Side, replace_keyframes


@dataclass(frozen=True)
class Corruption:
    """Options of the builders, with upstream's defaults."""

    mode: str = "gauss"
    sigma: float = 0.02
    anchor_noise_frac: float = 0.25
    student_replace_prob: float = 0.5
    student_noise_std: float = 0.02
    conf_anchor: float = 0.95
    conf_student: float = 0.5
    conf_endpoints: float = 1.0
    conf_missing: float = 0.0
    clamp_endpoints: bool = False
    interp_mode: str = "linear"
    uncertainty_mode: str = "none"
    uncertainty_weight: float = 1.0
    uncertainty_power: float = 1.0
    confidence_lost: bool = False


class Corrupted(NamedTuple):
    """A corrupted batch at level s and, in adjacent mode, at level s − 1."""

    z_s: Tensor
    z_prev: Tensor | None
    mask_s: Tensor
    mask_prev: Tensor | None
    s_idx: Tensor
    masks_levels: Tensor
    idx_levels: list[Tensor]
    conf_s: Tensor
    conf_prev: Tensor | None


class Builder(NamedTuple):
    """What one call of a builder works with."""

    z0: Tensor  # (b, t, n, d)
    draws: Draws
    options: Corruption
    model: nn.Module | None
    anchors: Anchors | None
    warper: Any
    patch_size: int
    shape: tuple[int, int]
    flat: bool


def corrupt_flat(
    z0: Tensor,
    draws: Draws,
    k_min: int,
    levels: int,
    options: Corruption,
    adjacent: bool = False,
    masks_levels: Tensor | None = None,
    idx_levels: Sequence[Tensor] | None = None,
    s_idx: Tensor | None = None,
    interp_model: nn.Module | None = None,
) -> Corrupted:
    """Flat clips `(b, t, d)`: token clips with one token."""
    builder = Builder(z0.unsqueeze(2), draws, options, interp_model, None, None, 1, (1, 1), True)
    out = corrupt(builder, k_min, levels, adjacent, masks_levels, idx_levels, s_idx)
    tokens = ("z_s", "z_prev", "mask_s", "mask_prev", "conf_s", "conf_prev")
    return out._replace(**{name: v.squeeze(2) for name in tokens if (v := getattr(out, name)) is not None})


def corrupt_tokens(
    z0: Tensor,
    draws: Draws,
    k_min: int,
    levels: int,
    options: Corruption,
    adjacent: bool = False,
    masks_levels: Tensor | None = None,
    idx_levels: Sequence[Tensor] | None = None,
    s_idx: Tensor | None = None,
    interp_model: nn.Module | None = None,
    anchor_values: Tensor | None = None,
    anchor_idx: Tensor | None = None,
    warper: Any = None,
    patch_size: int = 1,
    spatial_shape: tuple[int, int] = (1, 1),
) -> Corrupted:
    """Token clips `(b, t, n, d)`, interpolated by index or by a warper on their latents."""
    anchors = None if anchor_values is None else Anchors(anchor_values, anchor_idx)
    builder = Builder(z0, draws, options, interp_model, anchors, warper, patch_size, spatial_shape, False)
    return corrupt(builder, k_min, levels, adjacent, masks_levels, idx_levels, s_idx)


def corrupt(
    build: Builder,
    k_min: int,
    levels: int,
    adjacent: bool,
    masks_levels: Tensor | None,
    idx_levels: Sequence[Tensor] | None,
    s_idx: Tensor | None,
) -> Corrupted:
    """Group samples by level, make every group at once, write it to its place in the batch."""
    z0 = build.z0
    batch, frames, tokens, _ = z0.shape
    if masks_levels is None or idx_levels is None:
        masks_levels, idx_levels = nested_masks(batch, frames, k_min, levels, build.draws)
    if s_idx is None:
        s_idx = build.draws.randint(1, levels + 1, batch)
    offsets = (0, 1) if adjacent else (0,)
    videos = [torch.empty_like(z0) for _ in offsets]
    confs = [torch.empty(batch, frames, tokens, device=z0.device) for _ in offsets]
    for level in torch.unique(s_idx).tolist():
        samples = (s_idx == level).nonzero().flatten()
        sides = [Side(samples, idx_levels[level - offset][samples]) for offset in offsets]
        sides = replace_keyframes(z0, sides, build.draws, build.options, build.anchors, build.flat)
        filled = [fill(build, side) for side in sides]
        for video, conf, side, (made, trust) in zip(videos, confs, sides, filled, strict=True):
            noise = draw_noise(build, made, side)
            video[samples], conf[samples] = finish(build, made, trust, noise, side)
    rows = torch.arange(batch, device=masks_levels.device)
    masks = [masks_levels[rows, s_idx - offset].unsqueeze(-1).expand(-1, -1, tokens).clone() for offset in offsets]
    finer = (videos[1], masks[1], confs[1]) if adjacent else (None, None, None)
    return Corrupted(videos[0], finer[0], masks[0], finer[1], s_idx, masks_levels, list(idx_levels), confs[0], finer[2])


def fill(build: Builder, side: Side) -> tuple[Tensor, Tensor | None]:
    """Clips between the keyframes: tokens, or latents and the warper's confidence."""
    frames, tokens = build.z0.shape[1:3]
    if build.warper is None:
        values = side.values.transpose(1, 2).flatten(0, 1)
        idx = side.idx.repeat_interleave(tokens, dim=0)
        video = temporal.interpolate(idx, values, frames, build.options.interp_mode, build.model)
        return video.unflatten(0, (-1, tokens)).transpose(1, 2), None
    clips = build.z0[side.samples]
    clips[torch.arange(len(clips), device=clips.device)[:, None], side.idx] = side.values
    latents = patches.unpatchify(clips, build.patch_size, build.shape)
    return build.warper.interpolate(latents.to(warper_dtype(build.warper, latents.dtype)), side.idx)


def warper_dtype(warper: Any, otherwise: torch.dtype) -> torch.dtype:
    """Dtype of the warper's first parameter, else that of the latents."""
    parameters = getattr(warper, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return otherwise if first is None else first.dtype


def per_frame(values: Tensor, like: Tensor) -> Tensor:
    """`(b, t)` with the axes of `like`."""
    return values.reshape(*values.shape[:2], *[1] * (like.dim() - 2)).to(like.dtype)


def draw_noise(build: Builder, video: Tensor, side: Side) -> Tensor | None:
    """Scaled noise of the shape of the result, or None."""
    options = build.options
    if options.mode == "none" or options.sigma <= 0:
        return None
    shape = (*video.shape[:2], video.shape[3]) if build.flat else video.shape
    noise = options.sigma * build.draws.randn(shape, video.dtype).to(video.device).view(video.shape)
    if options.mode == "dist":
        noise = noise * per_frame(temporal.distance_weight(side.idx, video.shape[1]), noise)
    if options.anchor_noise_frac < 1:
        share = torch.ones(video.shape[:2], device=video.device).scatter(1, side.idx, options.anchor_noise_frac)
        noise = noise * per_frame(share, noise)
    return noise


def finish(
    build: Builder, video: Tensor, trust: Tensor | None, noise: Tensor | None, side: Side
) -> tuple[Tensor, Tensor]:
    """Noise and confidence: tokens `(b, t, n, d)` in their dtype, float32 `(b, t, n)`."""
    options = build.options
    if trust is None:
        confidence = torch.full(video.shape[:3], options.conf_missing, device=video.device)
        return (video if noise is None else video + noise), write_confidence(confidence, side, options)
    if noise is not None:
        video = add_uncertain(video, noise, trust, options)
    confidence = write_confidence(trust.float().clone(), side, options)
    tokens, _ = patches.patchify(video, build.patch_size)
    return tokens.to(build.z0.dtype), patches.patchify_confidence(confidence, build.patch_size)


def add_uncertain(video: Tensor, noise: Tensor, trust: Tensor, options: Corruption) -> Tensor:
    """Noise where the warper doubts: added, or in place of the frame."""
    if options.uncertainty_mode == "none":
        return video + noise
    doubt = (1 - trust).clamp(0, 1).unsqueeze(2)
    if options.uncertainty_power != 1:
        doubt = doubt.pow(options.uncertainty_power)
    if options.uncertainty_weight != 1:
        doubt = (options.uncertainty_weight * doubt).clamp(0, 1)
    doubt = doubt.to(video.dtype)
    return torch.addcmul(video * (1 - doubt) if options.uncertainty_mode == "replace" else video, noise, doubt)


def write_confidence(confidence: Tensor, side: Side, options: Corruption) -> Tensor:
    """What is known of keyframes and clamped ends, written into a map `(b, t, ...)` in place."""
    if not options.confidence_lost:
        known = torch.where(side.replaced, options.conf_student, options.conf_anchor)
        rows = torch.arange(len(confidence), device=confidence.device)[:, None]
        confidence[rows, side.idx] = known.view(*known.shape, *[1] * (confidence.dim() - 2)).expand(
            *known.shape, *confidence.shape[2:]
        )
    if options.clamp_endpoints:
        confidence[:, [0, -1]] = options.conf_endpoints
    return confidence
