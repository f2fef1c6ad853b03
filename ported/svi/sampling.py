"""Noise, the Euler loop, and decoding (spec section 6.5)."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ported.svi import vae as vae_calls
from ported.svi.conditioning import Condition
from ported.svi.versions import RIGHT, Version
from ported.wan.dit import DiTForward


@dataclass(frozen=True)
class Sampling:
    """How to run the loop; `reimpose` puts the clean start latents of a plain window back at every step."""

    steps: int
    shift: float
    guidance: float = 1.0
    reimpose: bool = False


def draw_noise(condition: Condition, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 `(1, 16, T, h, w)` of a generator on the compute device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    shape = (1, 16, *condition.lat_y.shape[1:])
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


class EulerSchedule:
    """The port's Euler: 1000 to 1 in equal steps, shifted, and 0."""

    def __init__(self, steps: int, shift: float) -> None:
        self.timesteps = shifted(torch.linspace(1000, 1, steps, dtype=torch.float32), shift)

    def step(self, i: int, flow: Tensor, sample: Tensor) -> Tensor:
        """Move the sample from time step i to the next, the last one to 0."""
        after = self.timesteps[i + 1] if i + 1 < len(self.timesteps) else torch.zeros(())
        return sample - flow * ((self.timesteps[i] - after) / 1000)


def shifted(u: Tensor, shift: float) -> Tensor:
    """`S·(u/1000) / (1 + (S-1)·(u/1000)) · 1000`."""
    u = u / 1000
    return shift * u / (1 + (shift - 1) * u) * 1000


def velocity(model: DiTForward, latent: Tensor, y: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """One pass; latent `(1, 16, T, h, w)`, y `(20, T, h, w)`, context `(l, dim)` -> `(1, 16, T, h, w)` float32."""
    return model([latent[0]], t[None], [context], y=[y])[0][None].float()


@torch.no_grad()
def sample(
    model: DiTForward, condition: Condition, noise: Tensor, contexts: tuple[Tensor, Tensor | None], sampling: Sampling
) -> Tensor:
    """Denoise `(1, 16, T, h, w)`; contexts: positive, and negative where guidance is used."""
    schedule = EulerSchedule(sampling.steps, sampling.shift)
    positive, negative = contexts
    clean = condition.clean if sampling.reimpose else None
    latent = noise
    for i, t in enumerate(schedule.timesteps):
        latent = latent if clean is None else reimposed(latent, clean, float(t) / 1000)
        flow = velocity(model, latent, condition.y, t, positive)
        if sampling.guidance != 1 and negative is not None:
            other = velocity(model, latent, condition.y, t, negative)
            flow = guided(flow, other, sampling.guidance)
        latent = schedule.step(i, flow, latent)
    return latent if clean is None else reimposed(latent, clean, 0.0)


def guided(flow: Tensor, other: Tensor, scale: float) -> Tensor:
    """`v_u + g·(v_c - v_u)`."""
    return other + scale * (flow - other)


def reimposed(latent: Tensor, clean: Tensor, t: float) -> Tensor:
    """Put `clean·(1-t) + noise·t` in the place of the first latents; noise of the global generator."""
    k = clean.shape[1]
    start = clean * (1 - t) + torch.randn_like(clean) * t if t else clean
    return torch.cat([start[None], latent[:, :, k:]], dim=2)


def trim(latent: Tensor, condition: Condition) -> Tensor:
    """Drop the latents of an isolated end frame: `(1, 16, T, h, w)` -> `(16, T', h, w)`."""
    return latent[0, :, : latent.shape[2] - condition.trim_frames]


def decode(vae: AutoencoderKLWan, latent: Tensor, condition: Condition, version: Version = RIGHT) -> Tensor:
    """Latents after the loop to `(3, t, H, W)` in [-1, 1]; an isolated end is trimmed first and then decoded as usual."""
    return vae_calls.decode(vae, trim(latent, condition), version.flag_at_decode and condition.end_flag)


def drop_leading(video: Tensor, condition: Condition) -> Tensor:
    """Drop the pixel frames that stand for the anchor."""
    return video[:, condition.pre_trim :]
