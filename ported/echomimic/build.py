"""Build the port's networks from a configuration and official state dicts, strictly; a cast happens once, at loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn

from ported.echomimic.networks import Denoiser, PoseEncoder, ReferenceNet
from ported.echomimic.settings import SCHEDULER, Config
from ported.echomimic.sound import AudioEncoder

M = TypeVar("M", bound=nn.Module)
State = Mapping[str, Tensor]
FILES = (
    "sd-image-variations-diffusers",
    "sd-vae-ft-mse",
    "denoising_unet_acc",
    "reference_unet",
    "pose_encoder",
    "motion_module_acc",
    "audio_processor/tiny",
)  # what a server needs (spec 1.2); all of them as safetensors


@dataclass
class Networks:
    """What a server loads once. Nothing in them changes while a request runs."""

    reference_unet: ReferenceNet
    denoising_unet: Denoiser
    vae: AutoencoderKL
    pose_encoder: PoseEncoder
    audio_model: AudioEncoder | None = None
    scheduler: Any = field(default_factory=lambda: DDIMScheduler.from_config(dict(SCHEDULER)))  # each run takes a copy

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the prefix of their keys."""
        named = {
            "reference_unet": self.reference_unet,
            "denoising_unet": self.denoising_unet,
            "vae": self.vae,
            "pose_encoder": self.pose_encoder,
            "audio_model": self.audio_model,
        }
        return {name: network for name, network in named.items() if network is not None}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the picture's path, which the rest follows."""
        return self.vae.quant_conv.weight.dtype


def load_state(what: str, network: M, state: State, dtype: torch.dtype) -> M:
    """Load copies of all tensors in `dtype`.

    Errors: ValueError that lists missing, unexpected and misshapen keys: nothing is skipped silently.
    """
    own = network.state_dict()
    problems = {
        "missing": sorted(set(own) - set(state)),
        "unexpected": sorted(set(state) - set(own)),
        "misshapen": sorted(key for key in own if key in state and own[key].shape != state[key].shape),
    }
    text = "; ".join(f"{len(keys)} {name}: {', '.join(keys)}" for name, keys in problems.items() if keys)
    if text:
        raise ValueError(f"{what} weights: {text}")
    network.load_state_dict({key: state[key].to(dtype, copy=True) for key in own}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def build_reference_unet(config: Config, state: State, dtype: torch.dtype = torch.float32) -> ReferenceNet:
    """Build the network that reads the picture."""
    return load_state("reference_unet", ReferenceNet(config), state, dtype)


def build_denoising_unet(config: Config, state: State, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Build the denoiser, motion modules included: a file that lacks them is an error, never a silent fallback."""
    return load_state("denoising_unet", Denoiser(config), state, dtype)


def build_pose_encoder(config: Config, state: State, dtype: torch.dtype = torch.float32) -> PoseEncoder:
    """Build the pose encoder."""
    return load_state("pose_encoder", PoseEncoder(config), state, dtype)


def build_audio_model(config: Config, state: State, dtype: torch.dtype = torch.float32) -> AudioEncoder:
    """Build the audio encoder."""
    return load_state("audio_model", AudioEncoder(config), state, dtype)


def build_vae(config: Config, state: State, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Build the library's VAE."""
    widths = tuple(config["block_out_channels"])
    arguments: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": config["layers_per_block"],
        "norm_num_groups": config["norm_num_groups"],
        "latent_channels": config["latent_channels"],
        "scaling_factor": config.get("scaling_factor", 0.18215),
    }
    return load_state("vae", AutoencoderKL(**arguments), state, dtype)


def build_networks(
    configs: Mapping[str, Config], states: Mapping[str, State], dtype: torch.dtype = torch.float32
) -> Networks:
    """Build all networks; `configs` and `states` by the names of `Networks`; without `audio_model` features are given."""
    return Networks(
        build_reference_unet(configs["reference_unet"], states["reference_unet"], dtype),
        build_denoising_unet(configs["denoising_unet"], states["denoising_unet"], dtype),
        build_vae(configs["vae"], states["vae"], dtype),
        build_pose_encoder(configs["pose_encoder"], states["pose_encoder"], dtype),
        build_audio_model(configs["audio_model"], states["audio_model"], dtype) if "audio_model" in configs else None,
    )
