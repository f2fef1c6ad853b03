"""Networks small enough to run in a second, with every mechanism of the real ones (spec 13): for demonstrations and tests."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ported.echomimic.build import Networks, build_networks
from ported.echomimic.networks import Denoiser, PoseEncoder, ReferenceNet
from ported.echomimic.settings import Config
from ported.echomimic.sound import AudioEncoder

UNET: Config = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "cross_attention_dim": 16,
    "motion_heads": 4,
    "max_len": 32,
}
VAE: Config = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
POSE_ENCODER: Config = {"block_out_channels": (4, 8, 12, 16), "conditioning_embedding_channels": 32}
AUDIO: Config = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 4}
CONFIGS = {
    "reference_unet": UNET,
    "denoising_unet": UNET,
    "vae": VAE,
    "pose_encoder": POSE_ENCODER,
    "audio_model": AUDIO,
}


def empty(name: str) -> nn.Module:
    """A network whose state dict says names and shapes."""
    makers = {
        "reference_unet": ReferenceNet,
        "denoising_unet": Denoiser,
        "pose_encoder": PoseEncoder,
        "audio_model": AudioEncoder,
    }
    if name in makers:
        return makers[name](CONFIGS[name])
    widths = VAE["block_out_channels"]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=VAE["layers_per_block"],
        norm_num_groups=VAE["norm_num_groups"],
        latent_channels=VAE["latent_channels"],
    )


def draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Weights that carry signal; tables stay."""
    if name.endswith(("pe", "positional_embedding")):
        return value
    noise = torch.randn(value.shape, generator=generator)
    if value.dim() > 1:
        return noise / math.sqrt(value[0].numel())
    return 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise


def tiny_networks(seed: int = 0, dtype: torch.dtype = torch.float32) -> Networks:
    """All networks with random weights."""
    generator = torch.Generator().manual_seed(seed)
    states = {
        part: {name: draw(name, value, generator) for name, value in empty(part).state_dict().items()}
        for part in CONFIGS
    }
    return build_networks(CONFIGS, states, dtype)
