"""A small Waypoint port with random weights, and one run of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ported.waypoint import PortOptions, WaypointConfig, WaypointPipeline, build_pipeline
from ported.waypoint.autoencoder import HalfConfig, WaypointVAE
from ported.waypoint.model import WaypointWorldModel
from ported.waypoint.text import TextEncodingStage

SIGMAS = (1.0, 0.8609585762023926, 0.729332447052002, 0.3205108940601349, 0.0)
CONFIG = WaypointConfig(
    d_model=128,
    n_heads=4,
    n_kv_heads=2,
    n_layers=4,
    mlp_ratio=1,
    channels=4,
    height=2,
    width=3,
    patch=(1, 2),
    tokens_per_frame=6,
    n_frames=16,
    local_window=3,
    global_window=4,
    global_attn_period=2,
    global_pinned_dilation=2,
    gated_attn=True,
    n_buttons=5,
    ctrl_conditioning_period=2,
    prompt_conditioning_period=3,
    prompt_embedding_dim=64,
    scheduler_sigmas=SIGMAS,
)
HALF = HalfConfig(3, 4, 4, 8, (1,), (1,))
FRAMES = 5


def random_weights(config: WaypointConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Weights of unit gain under the port's keys; shared matrices are equal in every block."""
    torch.manual_seed(seed)
    shapes = {key: tensor.shape for key, tensor in WaypointWorldModel(config).state_dict().items()}
    drawn = {key: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3) for key, shape in shapes.items()}
    for key in drawn:
        if ".cond_head.cond_proj." in key:
            drawn[key] = drawn["transformer.blocks.0" + key[key.index(".cond_head") :]]
    return drawn


def tiny_vae(seed: int = 1) -> WaypointVAE:
    torch.manual_seed(seed)
    return WaypointVAE(HALF, HALF).requires_grad_(False).eval()


def tiny_text(seed: int = 2) -> TextEncodingStage:
    """A three-layer UMT5 of random weights with a six-word vocabulary."""
    torch.manual_seed(seed)
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=64, d_kv=16, d_ff=64, num_layers=3, num_heads=4)).eval()
    for block in encoder.encoder.block:
        torch.nn.init.normal_(block.layer[0].SelfAttention.relative_attention_bias.weight)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "world": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return TextEncodingStage(encoder, wrapped, max_length=7)


def tiny_port(needs: Mapping[str, Any] | None = None, options: PortOptions | None = None) -> WaypointPipeline:
    """Build what a fault needs; the port is fp32 without autoencoder and text encoder otherwise."""
    needs = needs or {}
    return build_pipeline(
        CONFIG,
        random_weights(),
        dtype=torch.bfloat16 if needs.get("dtype") == "bf16" else torch.float32,
        vae=tiny_vae() if needs.get("vae") else None,
        text_encoding=tiny_text() if needs.get("text_encoder") else None,
        options=options,
    )


def tiny_inputs(seed: int = 3, frames: int = FRAMES) -> dict[str, Tensor]:
    """Random controls, noise, and a prompt of five tokens with two rows of zero padding."""
    generator = torch.Generator().manual_seed(seed)
    pad_mask = torch.tensor([[False] * 5 + [True] * 2])
    return {
        "prompt_emb": (3 * torch.randn(1, 7, 64, generator=generator)).masked_fill(pad_mask.unsqueeze(-1), 0.0),
        "prompt_pad_mask": pad_mask,
        "keyboard": (torch.rand(1, frames, 5, generator=generator) < 0.4).float(),
        "mouse": torch.randn(1, frames, 2, generator=generator),
        "scroll": torch.tensor([[3.0, 0.0, -4.0, 2.0, -1.0]])[:, :frames],
        "noise": torch.randn(frames, 1, 1, *CONFIG.latent_shape, generator=generator),
    }


def tiny_run(port: WaypointPipeline, needs: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor | None]:
    """Run five frames (three with an autoencoder's) -> latents [1, C, T, h, w], video [1, 3, T, H, W] or None."""
    needs, inputs = needs or {}, tiny_inputs()
    if needs.get("text_encoder"):
        port.streaming_reset("a red world", seed=7)
    else:
        port.streaming_reset(prompt_emb=inputs["prompt_emb"], prompt_pad_mask=inputs["prompt_pad_mask"], seed=7)
    frames, per_call = (1 if needs.get("vae") else FRAMES), needs.get("frames_per_call", 1)
    outputs = []
    for start in range(0, frames, per_call):
        part = slice(start, start + per_call)
        controls = (inputs[name][:, part] for name in ("keyboard", "mouse", "scroll"))
        noise = None if needs.get("injected_noise") is False else inputs["noise"][part]
        outputs.append(port.streaming_step(*controls, noise=noise))
    latents = torch.cat([out.latents for out in outputs], dim=2)
    videos = [out.video for out in outputs if out.video is not None]
    return latents, torch.cat(videos, dim=2) if videos else None
