"""A clip that continues others: what is known of it, how it is made, and how it joins what came before.

The contract of a chain of clips (spec sections 4, 5 and 7, last paragraph): a clip in SVI mode starts from the last four
frames, towards an end picture that fills a whole latent; without an end picture it continues in latent space, from the
anchor and the last latent of the frames before. A plain clip starts from the last frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.wan.dit import WanDiT
from reference.wan.vae import WanVAE

from . import encode, images, sampler
from . import vae as vae_calls
from .encode import Embeds, I2VRequest

OVERLAP = 4  # frames that two clips share
CONTEXT = 9  # frames before a clip that are looked at: one latent of one frame, two of four
MOTION_LATENTS = 1


@dataclass(frozen=True)
class Models:
    """The networks."""

    vae: WanVAE
    dit: WanDiT


@dataclass(frozen=True)
class Clip:
    """A wish. Pictures `(frames, H, W, 3)` in [0, 1]: what came before, the anchor, the end or None.

    frames: pixel frames of the clip, 4k+1; leading: frames of it that are known already.
    """

    frames: int
    leading: int
    svi: bool
    previous: Tensor
    anchor: Tensor
    end: Tensor | None = None

    @property
    def in_latent_space(self) -> bool:
        """Whether the clip continues latents of frames before it."""
        return self.svi and self.end is None and self.previous.shape[0] >= CONTEXT


@dataclass(frozen=True)
class Run:
    """How a clip is sampled; contexts: texts of the two passes."""

    sampling: sampler.Sampling
    contexts: tuple[Tensor, Tensor | None]
    seed: int


def segment_clip(
    previous: Tensor, wanted: int, svi: bool, end: Tensor | None = None, anchor: Tensor | None = None
) -> Clip:
    """The clip that gives `wanted` new frames behind `previous` and the shared ones; the anchor is the last frame."""
    before = previous[-CONTEXT:]
    anchor = before[-1:] if anchor is None else anchor
    asked = encode.whole_frames(wanted + OVERLAP)
    if svi:
        return Clip(asked + OVERLAP, OVERLAP, True, before, anchor, end)
    return Clip(asked, 1, False, before, anchor, end)


def embeds_of(vae: WanVAE, clip: Clip) -> Embeds:
    """Condition of a clip."""
    if clip.svi and clip.end is None:
        motion = motion_latents(vae, clip)
        height, width = clip.anchor.shape[1:3]
        anchor = vae_calls.encode(vae, images.to_pixels(clip.anchor, height, width))
        return encode.svi_pro_embeds(anchor[None], clip.frames, motion, MOTION_LATENTS)
    end = clip.end
    if end is not None and clip.svi:
        end = end.expand(OVERLAP, -1, -1, -1)
    height, width = clip.previous.shape[1:3]
    start = clip.previous[-clip.leading :]
    request = I2VRequest(width, height, clip.frames, start_image=start, end_image=end, fun_or_fl2v_model=True)
    return encode.i2v_encode(vae, request)


def motion_latents(vae: WanVAE, clip: Clip) -> Tensor | None:
    """Latents `(1, 16, t, h, w)` of the frames before the clip, None when there are too few."""
    if not clip.in_latent_space:
        return None
    before = clip.previous[-CONTEXT:]
    return vae_calls.encode(vae, images.to_pixels(before, *before.shape[1:3]))[None]


def make_clip(models: Models, clip: Clip, run: Run) -> Tensor:
    """Generate a clip: `(frames, H, W, 3)` in [0, 1]."""
    embeds = embeds_of(models.vae, clip)
    latent = sampler.sample(models.dit, embeds, sampler.draw_noise(embeds, run.seed), run.contexts, run.sampling)
    return drop_anchor(sampler.decode(models.vae, latent, embeds), clip.in_latent_space)


def drop_anchor(pictures: Tensor, in_latent_space: bool) -> Tensor:
    """Drop the frame that stands for the anchor of a continuation in latent space: it lies before the clip."""
    return pictures[1:] if in_latent_space else pictures


def join(clip: Clip, pictures: Tensor) -> Tensor:
    """Put a clip behind what came before, without the leading frames that it repeats; a start picture is the clip's own."""
    if clip.previous.shape[0] == 1:
        return pictures
    return torch.cat([clip.previous, pictures[clip.leading :]])


def continue_segment(models: Models, clip: Clip, wanted: int, run: Run) -> Tensor:
    """The shared frames of a segment and its new ones, `(wanted + 4, H, W, 3)`."""
    return join(clip, make_clip(models, clip, run))[-(wanted + OVERLAP) :]
