"""The forward process: keep keyframes, re-create everything else by interpolation, perhaps with noise (spec 6).

Samples of one level are drawn for together, in batch order, and then handled one by one. A flat video is a token video
with one token a frame. Precision: results keep the dtype of the clean input; confidences are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from . import patches, temporal
from .draws import Draws
from .masks import nested_masks
from .replacement import Anchors, Side, replace_keyframes


@dataclass(frozen=True)
class Corruption:
    """How a level is made. `confidence_lost` is upstream's flat builder, which loses what it writes at keyframes."""

    mode: str = "gauss"  # none, dist, gauss
    sigma: float = 0.02
    anchor_noise_frac: float = 0.25
    student_replace_prob: float = 0.5
    student_noise_std: float = 0.02
    conf_anchor: float = 0.95
    conf_student: float = 0.5
    conf_endpoints: float = 1.0
    conf_missing: float = 0.0
    clamp_endpoints: bool = False
    interp_mode: str = "linear"  # linear, smooth, learned; with a warper: its name
    uncertainty_mode: str = "none"  # none, add, replace
    uncertainty_weight: float = 1.0
    uncertainty_power: float = 1.0
    confidence_lost: bool = False


class Corrupted(NamedTuple):
    """A batch at level s and, in adjacent mode, at s − 1. Masks and confidences `(b, t)` flat, `(b, t, n)` for tokens."""

    z_s: Tensor
    z_prev: Tensor | None
    mask_s: Tensor
    mask_prev: Tensor | None
    s_idx: Tensor
    masks_levels: Tensor
    idx_levels: list[Tensor]
    conf_s: Tensor
    conf_prev: Tensor | None


class Warping(NamedTuple):
    """What turns tokens into latents for a warp interpolator."""

    warper: Any
    patch_size: int
    shape: tuple[int, int]


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
    """Corrupt flat videos `(b, t, d)`."""
    given = (masks_levels, idx_levels, s_idx)
    out = _corrupt(z0[:, :, None], draws, k_min, levels, options, adjacent, given, interp_model, None, None, flat=True)
    drop = lambda x: None if x is None else x[:, :, 0]  # noqa: E731
    return out._replace(
        **{name: drop(getattr(out, name)) for name in ("z_s", "z_prev", "mask_s", "mask_prev", "conf_s", "conf_prev")}
    )


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
    """Corrupt token videos `(b, t, n, d)`; with a warper the frames between keyframes are warped latents.

    anchor_values: `(b, t, n, d)` or `(b, K, n, d)`, with anchor_idx `(b, K)`. Errors: ValueError when anchors do not fit.
    """
    given = (masks_levels, idx_levels, s_idx)
    anchors = None if anchor_values is None else Anchors(anchor_values, anchor_idx)
    warping = None if warper is None else Warping(warper, patch_size, spatial_shape)
    return _corrupt(z0, draws, k_min, levels, options, adjacent, given, interp_model, anchors, warping, flat=False)


def _corrupt(
    z0: Tensor,
    draws: Draws,
    k_min: int,
    levels: int,
    options: Corruption,
    adjacent: bool,
    given: tuple[Tensor | None, Sequence[Tensor] | None, Tensor | None],
    interp_model: nn.Module | None,
    anchors: Anchors | None,
    warping: Warping | None,
    flat: bool,
) -> Corrupted:
    batch, frames, tokens, _ = z0.shape
    masks_levels, idx_levels, s_idx = given
    if masks_levels is None or idx_levels is None:
        masks_levels, idx_levels = nested_masks(batch, frames, k_min, levels, draws)
    if s_idx is None:
        s_idx = draws.randint(1, levels + 1, batch)
    offsets = (0, 1) if adjacent else (0,)
    videos = [torch.empty_like(z0) for _ in offsets]
    confidences = [torch.empty(batch, frames, tokens) for _ in offsets]
    for level in range(1, levels + 1):
        samples = (s_idx == level).nonzero().flatten().tolist()
        if not samples:
            continue
        sides = [Side(samples, idx_levels[level - offset][samples]) for offset in offsets]
        sides = replace_keyframes(z0, sides, draws, options, anchors, flat)
        filled = [fill(z0, side, options, interp_model, warping) for side in sides]
        for which, (side, (video, trust)) in enumerate(zip(sides, filled, strict=True)):
            noise = draw_noise(video, side, draws, options, flat)
            finished, conf = finish(video, trust, noise, side, options, warping)
            for row, b in enumerate(samples):
                videos[which][b], confidences[which][b] = finished[row], conf[row]
    masks = [
        torch.stack([masks_levels[b, s - offset] for b, s in enumerate(s_idx.tolist())])[..., None].repeat(1, 1, tokens)
        for offset in offsets
    ]
    prev = (videos[1], masks[1], confidences[1]) if adjacent else (None, None, None)
    return Corrupted(
        videos[0], prev[0], masks[0], prev[1], s_idx, masks_levels, list(idx_levels), confidences[0], prev[2]
    )


def fill(
    z0: Tensor, side: Side, options: Corruption, model: nn.Module | None, warping: Warping | None
) -> tuple[Tensor, Tensor | None]:
    """Interpolate between the keyframes of a side: tokens `(b, t, n, d)` alone, or latents and their confidence."""
    frames, tokens = z0.shape[1:3]
    if warping is None:
        idx = side.idx.repeat_interleave(tokens, dim=0)
        values = rearrange(side.values, "b k n d -> (b n) k d")
        video = temporal.interpolate(idx, values, frames, options.interp_mode, model)
        return rearrange(video, "(b n) t d -> b t n d", n=tokens), None
    clips = z0[side.samples].clone()
    for row, keyframes in enumerate(side.idx.tolist()):
        for k, t in enumerate(keyframes):
            clips[row, t] = side.values[row, k]
    latents = patches.unpatchify(clips, warping.patch_size, warping.shape)
    return warping.warper.interpolate(latents.to(warper_dtype(warping.warper, latents.dtype)), side.idx)


def warper_dtype(warper: Any, otherwise: torch.dtype) -> torch.dtype:
    """The dtype of the warper's first parameter; one without parameters takes the latents as they are (spec 2.1)."""
    first = next(iter(warper.parameters()), None) if hasattr(warper, "parameters") else None
    return otherwise if first is None else first.dtype


def draw_noise(video: Tensor, side: Side, draws: Draws, options: Corruption, flat: bool) -> Tensor | None:
    """`sigma · ε` of the shape of the result, weighted by distance and at keyframes; None where there is none."""
    if options.mode == "none" or options.sigma <= 0:
        return None
    shape = (video.shape[0], video.shape[1], video.shape[3]) if flat else video.shape
    noise = options.sigma * draws.randn(shape, video.dtype).view(video.shape)
    if options.mode == "dist":
        weight = temporal.distance_weight(side.idx, video.shape[1]).to(video.dtype)
        noise = noise * weight.view(*weight.shape[:2], *[1] * (video.dim() - 2))
    if options.anchor_noise_frac < 1:
        factor = torch.ones(video.shape[:2], dtype=video.dtype)
        for row, keyframes in enumerate(side.idx.tolist()):
            factor[row, keyframes] = options.anchor_noise_frac
        noise = noise * factor.view(*factor.shape, *[1] * (video.dim() - 2))
    return noise


def finish(
    video: Tensor,
    trust: Tensor | None,
    noise: Tensor | None,
    side: Side,
    options: Corruption,
    warping: Warping | None,
) -> tuple[Tensor, Tensor]:
    """Add the noise and write the confidence: tokens `(b, t, n, d)` and float32 `(b, t, n)`."""
    if warping is None or trust is None:
        confidence = torch.full(video.shape[:3], options.conf_missing)
        write_confidence(confidence, side, options)
        return (video if noise is None else video + noise), confidence
    if noise is not None:
        video = add_uncertain(video, noise, trust, options)
    confidence = trust.float().clone()
    write_confidence(confidence, side, options)
    tokens, _ = patches.patchify(video, warping.patch_size)
    return tokens, patches.patchify_confidence(confidence, warping.patch_size)


def add_uncertain(video: Tensor, noise: Tensor, trust: Tensor, options: Corruption) -> Tensor:
    """Add noise to warped latents where the warper is uncertain; `replace` also fades the frame there."""
    if options.uncertainty_mode == "none":
        return video + noise
    doubt = (1 - trust).clamp(0, 1)[:, :, None]
    if options.uncertainty_power != 1:
        doubt = doubt**options.uncertainty_power
    if options.uncertainty_weight != 1:
        doubt = (options.uncertainty_weight * doubt).clamp(0, 1)
    doubt = doubt.to(video.dtype)
    return video * (1 - doubt) + noise * doubt if options.uncertainty_mode == "replace" else video + noise * doubt


def write_confidence(confidence: Tensor, side: Side, options: Corruption) -> None:
    """Write what is known of keyframes and clamped ends into a map `(b, t, ...)`."""
    for row, keyframes in enumerate(side.idx.tolist()):
        if not options.confidence_lost:
            for k, t in enumerate(keyframes):
                confidence[row, t] = options.conf_student if side.replaced[row, k] else options.conf_anchor
        if options.clamp_endpoints:
            confidence[row, 0] = options.conf_endpoints
            confidence[row, -1] = options.conf_endpoints
