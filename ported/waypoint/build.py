"""Make a Waypoint port from a config and weights (spec B10).

The model is laid out on the meta device, takes its weights strictly, gets its non-persistent buffers, and is cast:
first everything to the engine's dtype, then the noise embedding back to fp32, which keeps the rounded values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import HalfConfig, WaypointVAE
from .cache import WaypointKVCache
from .config import PortOptions, WaypointConfig
from .decoding import DecodingStage
from .denoising import DenoisingStage
from .keys import bake_weight_norm
from .layers import SplitFusion
from .model import SHARED_CONDITIONING, WaypointWorldModel
from .pipeline import WaypointPipeline
from .text import TextEncodingStage


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Give a module copies of its tensors; every missing, unexpected or misshapen key is listed in a ValueError."""
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state_dict)), sorted(set(state_dict) - set(own))
    shapes = [
        f"{key} {tuple(state_dict[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": shapes}
    text = "; ".join(f"{len(keys)} {name}: {', '.join(keys)}" for name, keys in problems.items() if keys)
    if text:
        raise ValueError(f"Waypoint port: {what} weights: {text}")
    module.load_state_dict({key: state_dict[key].detach().clone() for key in own}, strict=True, assign=True)


def tie_conditioning(model: WaypointWorldModel) -> None:
    """Let all blocks hold the same conditioning matrices again: assigning new tensors broke the tie."""
    if model.config.noise_conditioning not in SHARED_CONDITIONING:
        return
    first, *rest = (block.cond_head for block in model.transformer.blocks)
    for head in rest:
        pairs = zip(head.cond_proj, first.cond_proj, strict=True)
        if not all(torch.equal(mine.weight, shared.weight) for mine, shared in pairs):
            raise ValueError("Waypoint port: the config shares the conditioning matrices, but the weights differ")
        head.share(first.cond_proj)


def materialise_buffers(model: WaypointWorldModel, device: torch.device) -> None:
    """Fill what no checkpoint holds."""
    model.denoise_step_emb.reset_frequencies(device)


def cast_model(model: WaypointWorldModel, dtype: torch.dtype, device: torch.device) -> None:
    model.to(device=device, dtype=dtype)
    model.denoise_step_emb.to(torch.float32)


def apply_options(model: WaypointWorldModel, options: PortOptions, device: torch.device) -> None:
    """Choices that need the loaded weights, or tables that a cast must not touch."""
    if options.rotary_angles == "rounded":
        model.transformer.rotary.round_tables(device)
    for block in model.transformer.blocks:
        if options.merged_qkv:
            block.attn.merge_projections()
        if options.split_fusion and block.ctrl_mlpfusion is not None:
            block.ctrl_mlpfusion = SplitFusion(block.ctrl_mlpfusion)


def build_model(
    config: WaypointConfig,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    options: PortOptions | None = None,
) -> WaypointWorldModel:
    """Build the world model; `state_dict` has the port's keys (see `keys.from_reference`)."""
    options, device = options or PortOptions(), torch.device(device)
    with torch.device("meta"):
        model = WaypointWorldModel(config, options)
    load_strict(model, state_dict, "world model")
    tie_conditioning(model)
    materialise_buffers(model, device)
    cast_model(model, dtype, device)
    apply_options(model, options, device)
    return model.requires_grad_(False).eval()


def build_vae(
    config: Mapping[str, Mapping[str, Any]], state_dict: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> WaypointVAE:
    """Build the fp32 autoencoder from {"encoder": ..., "decoder": ...}; weight norm, if present, is baked in."""
    with torch.device("meta"):
        vae = WaypointVAE(*(HalfConfig.from_mapping(config[half]) for half in ("encoder", "decoder")))
    load_strict(vae, bake_weight_norm(state_dict), "autoencoder")
    return vae.to(device=device, dtype=torch.float32).requires_grad_(False).eval()


def build_pipeline(
    config: WaypointConfig | Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    options: PortOptions | None = None,
    vae: WaypointVAE | None = None,
    text_encoding: TextEncodingStage | None = None,
) -> WaypointPipeline:
    """Build the pipeline; `state_dict` has the port's keys, `config` may be the config file's mapping."""
    if not isinstance(config, WaypointConfig):
        config = WaypointConfig.from_mapping(config)
    options = options or PortOptions()
    model = build_model(config, state_dict, dtype, device, options)
    kv_cache = WaypointKVCache(config, options, dtype, device)
    decoding = None if vae is None else DecodingStage(vae)
    return WaypointPipeline(DenoisingStage(model, kv_cache), decoding, text_encoding)
