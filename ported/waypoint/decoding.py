"""Decoding stage of the port's pipeline: latents to a float clip, frame by frame (spec B10).

Precision: the autoencoder runs in its own dtype (fp32); a frame is rounded to uint8 before it becomes float.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from .autoencoder import WaypointVAE


class DecodingStage(nn.Module):
    def __init__(self, vae: WaypointVAE) -> None:
        super().__init__()
        self.vae = vae

    def scale_latent(self, latent: Tensor) -> Tensor:
        """Scale 1 and shift 0 always (spec A9); only the dtype changes."""
        return latent.to(self.vae.dtype)

    def to_unit_range(self, frame: Tensor) -> Tensor:
        """uint8 [H, W, 3] -> float [3, H, W] in 0..1."""
        return rearrange(frame, "h w c -> c h w").float() / 255

    def decode_frame(self, latent: Tensor) -> Tensor:
        """latent [1, C, h, w] -> float [3, H, W] in 0..1."""
        return self.to_unit_range(self.vae.decode(self.scale_latent(latent)))

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, C, T, h, w] -> video [B, 3, T, H, W], float in 0..1."""
        frames = [[self.decode_frame(clip[None, :, i]) for i in range(clip.shape[1])] for clip in latents]
        return torch.stack([torch.stack(clip, dim=1) for clip in frames])
