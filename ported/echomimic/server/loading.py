"""Real weights from a folder: safetensors under the names of the specification (1.2), loaded strictly; nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ported.echomimic.build import Networks, build_networks
from ported.echomimic.settings import REAL_AUDIO, REAL_POSE_ENCODER, REAL_UNET, REAL_VAE, Config

PARTS: dict[str, tuple[str, ...]] = {
    "reference_unet": ("reference_unet.safetensors",),
    "denoising_unet": ("denoising_unet_acc.safetensors", "motion_module_acc.safetensors"),
    "vae": ("sd-vae-ft-mse/diffusion_pytorch_model.safetensors",),
    "pose_encoder": ("pose_encoder.safetensors",),
    "audio_model": ("audio_processor/tiny.safetensors",),
}
REAL: dict[str, Config] = {
    "reference_unet": REAL_UNET,
    "denoising_unet": REAL_UNET,
    "vae": REAL_VAE,
    "pose_encoder": REAL_POSE_ENCODER,
    "audio_model": REAL_AUDIO,
}


def missing_files(folder: Path) -> tuple[str, ...]:
    """Return the weight files that a folder lacks."""
    return tuple(name for names in PARTS.values() for name in names if not (folder / name).is_file())


def load_networks(folder: Path, dtype: torch.dtype, device: str = "cpu") -> Networks:
    """Load all networks; `configs.json` in the folder may give other sizes than the real ones, by part.

    Errors: ValueError that lists missing, unexpected and misshapen keys.
    """
    own = folder / "configs.json"
    configs = REAL | (json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {})
    states = {}
    for part, names in PARTS.items():
        states[part] = {key: value for name in names for key, value in load_file(folder / name).items()}
    networks = build_networks(configs, states, dtype)
    for network in networks.parts().values():
        network.to(device)
    return networks
