"""The standard and the accelerated pipeline (spec 8).

Precision: everything in the dtype of the networks (float16 upstream); the decoded video is float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio, control, image, pose_maps, windows
from .config import Variant
from .pose_encoder import PoseEncoder
from .scheduler import DDIM
from .unet import DenoisingUNet, ReferenceUNet
from .vae import VAE, decode_video, reference_latent

LATENT_CLAMP = 1.5
SEED_RANGE = (100, 1000000)


@dataclass(frozen=True)
class Models:
    """The networks; the audio model runs before (`audio.audio_features`). `bank_dtype`: see quirk `bank-float16`."""

    reference_unet: ReferenceUNet
    denoising_unet: DenoisingUNet
    vae: VAE
    pose_encoder: PoseEncoder
    scheduler: DDIM = field(default_factory=DDIM)
    bank_dtype: torch.dtype = control.BANK_DTYPE


@dataclass(frozen=True)
class Conditions:
    """What every pass of the denoiser is given: audio (1, L, 50, d), pose features (1, c0, L, h, w), banks by block."""

    audio: Tensor
    pose: Tensor
    banks: dict[str, Tensor]


@dataclass(frozen=True)
class Generated:
    """The last latents (1, 4, L, h, w) and the video (1, 3, L, H, W) float32 in [0, 1]."""

    latents: Tensor
    video: Tensor


def make_generator(seed: int) -> torch.Generator:
    """Seed the global CPU generator, as upstream; −1 draws the seed from [100, 1000000]."""
    if seed == -1:
        seed = int(np.random.randint(SEED_RANGE[0], SEED_RANGE[1] + 1))
    return torch.manual_seed(seed)


def draw_latents(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Normal numbers (1, 4, L, h, w)."""
    return torch.randn(tuple(shape), generator=generator, dtype=dtype)


def prepare_latents(noise: Tensor, scheduler: DDIM) -> Tensor:
    """Clamp to [−1.5, 1.5] and scale by 1."""
    return noise.clamp(-LATENT_CLAMP, LATENT_CLAMP) * scheduler.init_noise_sigma


def frame_audio(features: Tensor, fps: float, length: int, dtype: torch.dtype) -> Tensor:
    """Whisper features (T, 5, d) -> windows (1, L, 50, d), no more than there are."""
    return audio.audio_windows(features, fps)[None, :length].to(dtype)


def predict_window(
    models: Models, latents: Tensor, timestep: Tensor, conditions: Conditions, window: list[int], cfg: bool
) -> Tensor:
    """One pass of the denoiser over the frames of a window: (1 or 2, 4, F, h, w), unconditional first.

    The unconditional half has the same latents, no audio, no pose and, in the denoiser, no reference.
    """
    x, sound, pose = latents[:, :, window], conditions.audio[:, window], conditions.pose[:, :, window]
    if cfg:
        x = torch.cat([x, x])
        sound, pose = (torch.cat([torch.zeros_like(part), part]) for part in (sound, pose))
    return models.denoising_unet(x, timestep, sound, pose, conditions.banks, cfg)


def through_x0(scheduler: DDIM, v: Tensor, x: Tensor, timestep: int) -> Tensor:
    """v -> x₀ -> v of the accelerated pipeline: the identity up to rounding (spec 8, iii)."""
    bar = scheduler.alpha(timestep)
    x0 = bar**0.5 * x - (1 - bar) ** 0.5 * v
    return (x0 - bar**0.5 * x) / (-((1 - bar) ** 0.5))


def average(total: Tensor, count: Tensor) -> Tensor:
    """Mean over the windows that hold a frame: (b, 4, L, h, w) by (1, 1, L, 1, 1); 0/0 where none does."""
    return total / count


def guide(v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
    """`v = v_u + s·(v_c − v_u)`."""
    return v_uncond + scale * (v_cond - v_uncond)


def predict(
    models: Models,
    latents: Tensor,
    timestep: int,
    step: int,
    conditions: Conditions,
    frames: list[list[int]],
    call: Variant,
) -> Tensor:
    """Velocity of all frames (1, 4, L, h, w): windows, their mean, guidance.

    Without guidance the standard pipeline adds overlapping windows up and does not divide (quirk `standard-cfg-1`).
    """
    cfg, length = call.guidance_scale > 1.0, latents.shape[2]
    total = latents.new_zeros(2 if cfg else 1, *latents.shape[1:])
    count = latents.new_zeros(1, 1, length, 1, 1)
    for window in windows.shifted(frames, step, length):
        v = predict_window(models, latents, torch.tensor(timestep), conditions, window, cfg)
        if call.accelerated:
            x = latents[:, :, window]
            v = through_x0(models.scheduler, v, torch.cat([x, x]) if cfg else x, timestep)
        total[:, :, window] = total[:, :, window] + v
        count[:, :, window] = count[:, :, window] + 1
    if cfg:
        return guide(*average(total, count).chunk(2), call.guidance_scale)
    return average(total, count) if call.accelerated else total


def denoise_step(
    models: Models,
    latents: Tensor,
    timestep: int,
    step: int,
    conditions: Conditions,
    frames: list[list[int]],
    call: Variant,
) -> Tensor:
    """One step of the loop: latents (1, 4, L, h, w) -> the latents at the previous time step."""
    v = predict(models, latents, timestep, step, conditions, frames, call)
    return models.scheduler.step(v, timestep, call.steps, latents)[0]


def read_reference(models: Models, latent: Tensor, call: Variant) -> dict[str, Tensor]:
    """Run the reference network once, at time step 0, and hand its banks over.

    The standard pipeline doubles them whatever the guidance is (quirk `standard-cfg-1`).
    """
    doubled = call.guidance_scale > 1.0 or not call.accelerated
    _, banks = models.reference_unet(latent, torch.tensor(0))
    return control.transfer(models.reference_unet, models.denoising_unet, banks, doubled, models.bank_dtype)


@torch.no_grad()
def denoise(
    models: Models,
    latents: Tensor,
    conditions: Conditions,
    call: Variant,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run the loop: initial latents (1, 4, L, h, w) -> the last ones."""
    frames = list(windows.uniform(0, latents.shape[2], call.context_frames, 1, call.context_overlap))
    for step, timestep in enumerate(models.scheduler.timesteps(call.steps).tolist()):
        latents = denoise_step(models, latents, timestep, step, conditions, frames, call)
        if progress is not None:
            progress(step, latents)
    return latents


@torch.no_grad()
def generate(
    models: Models,
    picture: NDArray[np.uint8] | Tensor,
    features: Tensor,
    maps: Sequence[NDArray[np.uint8]] | Tensor,
    call: Variant,
    noise: Tensor | None = None,
    resize_first: bool = False,
) -> Generated:
    """A whole call: picture uint8 (h, w, 3), Whisper features (T, 5, d), pose maps uint8 (L, H, W, 3).

    L is the smallest of the asked length, the pose maps and the audio windows. `noise` (1, 4, L, h, w) replaces the
    numbers that the seed would draw. `resize_first`: the picture comes from the standard caller, which resizes it itself.
    """
    dtype = models.vae.quant_conv.weight.dtype
    length = min(call.length, len(maps))
    sound = frame_audio(features, call.fps, length, dtype)
    length = sound.shape[1]
    stride = models.vae.config.stride
    shape = (1, models.vae.config.latent_channels, length, call.height // stride, call.width // stride)
    if noise is None:
        noise = draw_latents(shape, make_generator(call.seed), dtype)
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, this video needs {shape}")
    latents = prepare_latents(noise.to(dtype), models.scheduler)
    pose = models.pose_encoder(pose_maps.maps_to_tensor(maps)[:, :, :length].to(dtype))
    ref = image.picture_to_tensor(picture, call.width, call.height, twice=resize_first)
    banks = read_reference(models, reference_latent(models.vae, ref.to(dtype)), call)
    latents = denoise(models, latents, Conditions(sound, pose, banks), call)
    return Generated(latents, decode_video(models.vae, latents))
