"""One FLF2V segment in tensors (specification, section 7). Precision: that of `reference.wan.pipeline`.

The mask follows the segment's length; the official script's literal 81 fails for any other (golden mask81).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.wan import conditioning, pipeline
from reference.wan.conditioning import SPACE_STRIDE
from reference.wan.dit import WanDiT
from reference.wan.vae import WanVAE

DEFAULT_STEPS, DEFAULT_SHIFT = 50, 16.0


@dataclass(frozen=True)
class Networks:
    """What generates: transformer and VAE."""

    dit: WanDiT
    vae: WanVAE


@dataclass(frozen=True)
class SegmentInputs:
    """Two pictures `(3, H, W)` in [−1, 1], their features `(2, tokens, dim)`, and the encoded texts."""

    first: Tensor
    last: Tensor
    clip_fea: Tensor
    prompts: pipeline.Prompts
    frames: int
    seed: int


def frame_pixels(image: Tensor, height: int, width: int) -> Tensor:
    """A keyframe as the VAE sees it: bicubic to the video's size, `(3, height, width)`."""
    return conditioning.resize(image, height, width)


def pixel_video(first: Tensor, last: Tensor, frames: int) -> Tensor:
    """First picture, zeros, last picture: `(3, frames, height, width)`. Raises RuntimeError for one frame, as upstream."""
    grey = first.new_zeros(3, frames - 2, *first.shape[1:])
    return torch.cat([first[:, None], grey, last[:, None]], dim=1)


@torch.no_grad()
def condition(networks: Networks, inputs: SegmentInputs, shape: tuple[int, int, int, int]) -> pipeline.ImageCondition:
    """Mask and latents of both pictures; one VAE encode of the whole pixel video."""
    _, _, h, w = shape
    pictures = [frame_pixels(image, h * SPACE_STRIDE, w * SPACE_STRIDE) for image in (inputs.first, inputs.last)]
    mask = conditioning.flf2v_mask(inputs.frames, h, w, fixed_frames=True)
    video = pixel_video(*pictures, inputs.frames).to(networks.vae.conv1.weight)
    return pipeline.ImageCondition(inputs.clip_fea, conditioning.condition_tensor(mask, networks.vae.encode(video)))


def generate_segment(
    networks: Networks, inputs: SegmentInputs, max_area: int, sampling: pipeline.Sampling
) -> pipeline.Generated:
    """Pictures to video: condition, noise from the segment's own seed, denoising, decoding."""
    shape = conditioning.image_latent_shape(tuple(inputs.first.shape[1:]), max_area, inputs.frames)
    image = condition(networks, inputs, shape)
    noise = pipeline.draw_noise(shape, inputs.seed, networks.dit.patch_embedding.weight.device)
    models = pipeline.Models(networks.dit, networks.vae)
    return pipeline.generate(models, inputs.prompts, shape, sampling, noise, image)
