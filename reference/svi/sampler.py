"""From embeds to frames: condition channels, noise, Euler steps, decode (spec section 5)."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from reference.wan.dit import WanDiT
from reference.wan.vae import WanVAE

from . import vae as vae_calls
from .encode import Embeds

TRAIN_STEPS = 1000
LATENT_CHANNELS = 16
CONDITIONED = 36  # input channels of a transformer that takes mask and latents
UNMASKED = (32, 48)


@dataclass(frozen=True)
class Sampling:
    """How to run the loop; `autocast` is the dtype in which the transformer computes."""

    steps: int
    shift: float
    guidance: float = 1.0
    autocast: torch.dtype | None = None


def condition(embeds: Embeds, in_channels: int = CONDITIONED) -> Tensor:
    """`cat([mask, latents])`, mask first: `(20, T, h, w)`.

    Transformers of 48 or 32 channels take no mask: latents after the first are zeroed instead, `(16, T, h, w)`.

    Errors: ValueError for a transformer of 16 channels, which takes no condition.
    """
    if in_channels == LATENT_CHANNELS:
        raise ValueError("a transformer with 16 input channels takes no image condition: use an i2v model")
    if in_channels in UNMASKED:
        first_only = torch.zeros_like(embeds.image_embeds)
        first_only[:, :1] = embeds.image_embeds[:, :1]
        return first_only
    return torch.cat([embeds.mask, embeds.image_embeds])


def noise_frames(embeds: Embeds) -> int:
    """Latent frames of the noise."""
    return (embeds.num_frames - 1) // 4 + (2 if embeds.isolated_end else 1)


def draw_noise(embeds: Embeds, seed: int) -> Tensor:
    """Standard normal float32 `(16, T, h, w)` of a generator on the CPU, whatever the device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    shape = (LATENT_CHANNELS, noise_frames(embeds), embeds.lat_h, embeds.lat_w)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def sequence_length(embeds: Embeds) -> int:
    """Tokens of the clip."""
    return math.ceil(embeds.lat_h * embeds.lat_w / 4 * noise_frames(embeds))


def timesteps(steps: int, shift: float) -> Tensor:
    """Shifted time steps `(steps,)` float32: `f(u) = S·v/(1+(S-1)·v)·1000`, v = u/1000, u from 1000 to 1."""
    v = torch.linspace(TRAIN_STEPS, 1, steps, dtype=torch.float32) / TRAIN_STEPS
    return shift * v / (1 + (shift - 1) * v) * TRAIN_STEPS


def model_input(latent: Tensor, cond: Tensor) -> Tensor:
    """What the transformer embeds: 16 noise, 4 mask, 16 image channels `(36, T, h, w)`."""
    return torch.cat([latent, cond.to(latent)])


def predict(
    dit: WanDiT, latent: Tensor, cond: Tensor, t: Tensor, context: Tensor, length: int, autocast: torch.dtype | None
) -> Tensor:
    """One pass: velocity `(16, T, h, w)` at time `t` for one text `(l, text_dim)`."""
    x = model_input(latent, cond)
    half = autocast in (torch.bfloat16, torch.float16)
    with torch.autocast(x.device.type, dtype=autocast if half else torch.bfloat16, enabled=half):
        return dit([x], t[None].to(x.device), [context], length)[0]


def euler_step(latent: Tensor, flow: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """`x - flow·(t - t')/1000`."""
    return latent - flow * ((t - t_next) / TRAIN_STEPS)


@torch.no_grad()
def sample(
    dit: WanDiT, embeds: Embeds, noise: Tensor, contexts: tuple[Tensor, Tensor | None], sampling: Sampling
) -> Tensor:
    """Denoise `(16, T, h, w)`; contexts: positive, and negative when guidance is not 1. One condition for both passes."""
    cond = condition(embeds)
    times = torch.cat([timesteps(sampling.steps, sampling.shift), torch.zeros(1)])
    length, (positive, negative) = sequence_length(embeds), contexts
    latent = noise
    for i in range(sampling.steps):
        flow = predict(dit, latent, cond, times[i], positive, length, sampling.autocast)
        if sampling.guidance != 1.0 and negative is not None:
            other = predict(dit, latent, cond, times[i], negative, length, sampling.autocast)
            flow = other + sampling.guidance * (flow - other)
        latent = euler_step(latent, flow, times[i], times[i + 1])
    return latent


@torch.no_grad()
def decode(vae: WanVAE, latent: Tensor, embeds: Embeds) -> Tensor:
    """Latents `(16, T, h, w)` to pictures `(frames, H, W, 3)` in [0, 1].

    A split end is decoded as the clip that it is, and its frame is dropped; a prepended reference latent is dropped first.
    """
    if embeds.has_ref:
        latent = latent[:, 1:]
    pixels = decode_pixels(vae, latent, embeds.isolated_end)
    pictures = (pixels.clamp(-1, 1) + 1) / 2
    if embeds.isolated_end:
        pictures = pictures[:, :-1]
    return rearrange(pictures.clamp(0, 1), "c f h w -> f h w c")


def decode_pixels(vae: WanVAE, latent: Tensor, end_flag: bool) -> Tensor:
    """Decode to `(3, frames, H, W)`, not limited."""
    return vae_calls.decode(vae, latent, end_flag)
