"""VAE calls with the end flag (spec section 2): the library's encoder and decoder, one chunk at a time.

The library's own loop knows no end flag, so the loop stands here; `quant_conv` and `post_quant_conv` run once over
everything, where the reference runs them twice.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ported.wan.vae import statistics

Slots = list[Any]


def fresh(vae: AutoencoderKLWan, network: str) -> Slots:
    """Empty caches for the "encoder" or "decoder", one entry for each causal convolution."""
    return [None] * vae._cached_conv_counts[network]


def encode_chunk(vae: AutoencoderKLWan, x: Tensor, feat_map: Slots) -> Tensor:
    """Encode `(1, 3, 1 or 4, H, W)` -> `(1, 32, 1, h, w)`; fills the caches."""
    return vae.encoder(x, feat_cache=feat_map, feat_idx=[0])


def decode_chunk(vae: AutoencoderKLWan, z: Tensor, feat_map: Slots) -> Tensor:
    """Decode `(1, 16, 1, h, w)` -> `(1, 3, 1 or 4, H, W)`; fills the caches."""
    return vae.decoder(z, feat_cache=feat_map, feat_idx=[0])


def encode(vae: AutoencoderKLWan, video: Tensor, any_end_frame: bool = False) -> Tensor:
    """Encode `(3, t, H, W)` in [-1, 1] -> normalised means `(16, T, h, w)` float32; with the flag the last frame is alone.

    A single frame with the flag gives one latent.
    """
    x = video[None].to(vae.dtype)
    frames = x.shape[2]
    chunks = 2 + (frames - 2) // 4 if any_end_frame else 1 + (frames - 1) // 4
    feat_map, parts = fresh(vae, "encoder"), []
    for i in range(chunks):
        if i == 0:
            parts.append(encode_chunk(vae, x[:, :, :1], feat_map))
        elif any_end_frame and i == chunks - 1:
            parts.append(encode_chunk(vae, x[:, :, -1:], fresh(vae, "encoder")))
        else:
            parts.append(encode_chunk(vae, x[:, :, 1 + 4 * (i - 1) : 1 + 4 * i], feat_map))
    mean, _ = vae.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
    centre, inverse_std = statistics(vae, mean)
    return ((mean - centre) * inverse_std)[0].float()


def decode(vae: AutoencoderKLWan, latent: Tensor, any_end_frame: bool = False) -> Tensor:
    """Decode normalised `(16, T, h, w)` -> `(3, t, H, W)` float32 in [-1, 1]; with the flag the last latent is alone."""
    centre, inverse_std = statistics(vae, latent)
    z = vae.post_quant_conv((latent[None] / inverse_std + centre).to(vae.dtype))
    count = z.shape[2]
    feat_map, parts = fresh(vae, "decoder"), []
    for i in range(count):
        alone = any_end_frame and i == count - 1
        parts.append(decode_chunk(vae, z[:, :, i : i + 1], fresh(vae, "decoder") if alone else feat_map))
    return torch.cat(parts, dim=2)[0].float().clamp(-1, 1)
