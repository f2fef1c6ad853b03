"""Encode and decode with the port's VAE; mean and std are applied outside it, as the pipelines do (spec A10, B2)."""

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """`(b, 3, t, h, w)` in [-1, 1] to normalised latents `(b, 16, 1+(t-1)//4, h/8, w/8)`: the mode, no sampling."""
    latents = vae.encode(video.to(vae.dtype)).latent_dist.mode()
    mean, inverse_std = statistics(vae, latents)
    return (latents - mean) * inverse_std


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Normalised latents `(b, 16, t, h, w)` to a video `(b, 3, 1+4(t-1), 8h, 8w)` clamped to [-1, 1]."""
    latents = latents.to(vae.dtype)
    mean, inverse_std = statistics(vae, latents)
    return vae.decode(latents / inverse_std + mean, return_dict=False)[0]


def statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Channel mean and 1/std `(1, 16, 1, 1, 1)`, cast to the dtype of `like` before the inversion."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
    return mean, 1.0 / std
