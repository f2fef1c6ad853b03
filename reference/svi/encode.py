"""Pictures to condition latents and mask (spec section 3), and the SVI-Pro continuation in latent space (section 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.wan.vae import WanVAE

from . import images, masks
from . import vae as vae_calls

SPACE = vae_calls.SPACE


@dataclass(frozen=True)
class I2VRequest:
    """Inputs of one encode; pictures are `(frames, H, W, 3)` in [0, 1].

    `fun_or_fl2v_model`: the end picture is the end of the clip (inline); False: it is a clip of its own (split).
    `temporal_mask` is `(frames, H', W')`, `extra_latents` `(1, 16, k, h, w)`.
    """

    width: int
    height: int
    num_frames: int
    start_image: Tensor | None = None
    end_image: Tensor | None = None
    fun_or_fl2v_model: bool = False
    noise_aug_strength: float = 0.0
    start_latent_strength: float = 1.0
    end_latent_strength: float = 1.0
    augment_empty_frames: float = 0.0
    empty_frame_pad_image: Tensor | None = None
    temporal_mask: Tensor | None = None
    extra_latents: Tensor | None = None
    tiled_vae: bool = False


@dataclass(frozen=True)
class Embeds:
    """What the sampler takes: latents `(16, T, h, w)`, mask `(4, T, h, w)`, and the counts that go with them."""

    image_embeds: Tensor
    mask: Tensor
    num_frames: int
    lat_h: int
    lat_w: int
    max_seq_len: int = 0
    end_image: Tensor | None = None
    fun_or_fl2v_model: bool = False
    has_ref: bool = False

    @property
    def isolated_end(self) -> bool:
        """Whether the last latent is a clip of its own."""
        return self.end_image is not None and not self.fun_or_fl2v_model


def whole_frames(frames: int) -> int:
    """The largest 4k+1 that is not larger (hazard H5: a longer wish is cut silently)."""
    return 4 * ((frames - 1) // 4) + 1


def i2v_encode(vae: WanVAE | None, request: I2VRequest) -> Embeds:
    """Encode start and end pictures into condition latents and mask.

    Errors: ValueError without a VAE; RuntimeError when the pictures are longer than the clip; IndexError for hazard H3.
    """
    if vae is None:
        raise ValueError("i2v_encode needs a VAE")
    n = whole_frames(request.num_frames)
    start, end = pictures(request)
    inline = request.fun_or_fl2v_model or (end is not None and start is None)
    split = end is not None and start is not None and not inline
    known = frame_mask(request, n + split, count(start), count(end))
    mask = latent_mask(known, split).to(vae.conv1.weight.dtype)
    pixels = pixel_concat(request, n, start, end, split)
    pixels = pad_empty_frames(request, pixels, known, count(start), count(end))
    latents = encode(vae, pixels, split, request.tiled_vae)
    if request.extra_latents is not None:
        latents, mask = prepend(request.extra_latents, latents, mask)
        n += 4 * request.extra_latents.shape[2]
    latents = scale_latents(request, latents, mask)
    lat_h, lat_w = latents.shape[2:]
    length = ((n - 1) // 4 + (2 if split else 1)) * (lat_h * lat_w // 4)
    return Embeds(latents, mask, n, lat_h, lat_w, length, end, inline, request.extra_latents is not None)


def count(pixels: Tensor | None) -> int:
    """Known frames of `(3, frames, H, W)` or of nothing."""
    return 0 if pixels is None else pixels.shape[1]


def pictures(request: I2VRequest) -> tuple[Tensor | None, Tensor | None]:
    """Start and end as pixels `(3, frames, H, W)`, with their noise: the start's is drawn first."""
    found = [
        None if picture is None else images.to_pixels(picture, request.height, request.width)
        for picture in (request.start_image, request.end_image)
    ]
    if request.noise_aug_strength > 0:
        found = [None if x is None else images.add_noise(x, request.noise_aug_strength) for x in found]
    return found[0], found[1]


def frame_mask(request: I2VRequest, frames: int, start: int, end: int) -> Tensor:
    """The mask of pixel frames `(1, frames, h, w)`; a temporal mask takes the place of the known frames."""
    height, width = request.height // SPACE, request.width // SPACE
    if request.temporal_mask is not None:
        return masks.fit_temporal_mask(request.temporal_mask, frames, height, width)
    return masks.pixel_mask(frames, start, end, height, width)


def latent_mask(known: Tensor, split: bool) -> Tensor:
    """Expand the pixel mask to latent sub-frames `(4, T, h, w)`."""
    return masks.to_sub_frames(known, split)


def pixel_concat(request: I2VRequest, n: int, start: Tensor | None, end: Tensor | None, split: bool) -> Tensor:
    """`[start | grey | end]` `(3, frames, H, W)`; split has n-1 grey frames whatever the lengths (hazard H1)."""
    empty = n - 1 if split else n - count(start) - count(end)
    grey = torch.zeros(3, empty, request.height, request.width)
    return torch.cat([part for part in (start, grey, end) if part is not None], dim=1)


def pad_empty_frames(request: I2VRequest, pixels: Tensor, known: Tensor, start: int, end: int) -> Tensor:
    """Put the pad picture where the mask says unknown and no start or end frame lies; the mask stays as it is."""
    if request.empty_frame_pad_image is None:
        return pixels
    pad = images.to_pixels(request.empty_frame_pad_image, request.height, request.width)
    frames = pixels.shape[1]
    pad = torch.cat([pad, pad[:, -1:].expand(-1, max(0, frames - pad.shape[1]), -1, -1)], dim=1)[:, :frames]
    out = pixels.clone()
    for f in range(frames):
        unknown = known[0, f].mean() < 0.5
        if unknown and start <= f < frames - end:
            out[:, f] = pad[:, f]
    return out


def encode(vae: WanVAE, pixels: Tensor, end_flag: bool, tiled: bool) -> Tensor:
    """Encode the pixel tensor once: `(3, t, H, W)` -> `(16, T, h, w)`."""
    run = vae_calls.encode_tiled if tiled else vae_calls.encode
    return run(vae, pixels, end_flag)


def prepend(extra: Tensor, latents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put known latents `(1, 16, k, h, w)` in front; their mask is 1."""
    ones = mask.new_ones(mask.shape[0], extra.shape[2], *mask.shape[2:])
    return torch.cat([extra[0].to(latents), latents], dim=1), torch.cat([ones, mask], dim=1)


def scale_latents(request: I2VRequest, latents: Tensor, mask: Tensor) -> Tensor:
    """Apply the strengths to the first and last latent, then push unknown latents away from the first."""
    latents = latents.clone()
    latents[:, :1] *= request.start_latent_strength
    latents[:, -1:] *= request.end_latent_strength
    if request.augment_empty_frames > 0:
        unknown = (mask[0].mean(dim=(1, 2)) < 0.5).to(latents)[None, :, None, None]
        first = latents[:, :1]
        latents = first + (latents - first) * (1 + request.augment_empty_frames * unknown)
    return latents


def svi_pro_embeds(anchor: Tensor, num_frames: int, prev: Tensor | None = None, motion_count: int = 1) -> Embeds:
    """Continue in latent space: `[anchor | last motion latents | zeros]`, only frame 0 known (hazard H4).

    anchor and prev `(1, 16, t, h, w)`; `num_frames` must be 4k+1.

    Errors: RuntimeError when anchor and motion are longer than the clip, or for other frame counts.
    """
    parts = [anchor[0]]
    if prev is not None and motion_count > 0:
        parts.append(prev[0, :, -motion_count:])
    known = torch.cat(parts, dim=1)
    height, width = known.shape[2:]
    total = (num_frames - 1) // 4 + 1
    zeros = known.new_zeros(known.shape[0], total - known.shape[1], height, width)
    mask = masks.to_sub_frames(masks.pixel_mask(num_frames, 1, 0, height, width), isolated_end=False)
    return Embeds(torch.cat([known, zeros], dim=1), mask.to(known), num_frames, height, width)
