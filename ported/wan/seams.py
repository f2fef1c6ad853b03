"""Where the port can be observed beyond module inputs and outputs: library functions that are looked up when called.

Two things the library writes inline, where no wrapper reaches: the rotation (a closure inside the attention processor),
whose results are the first two arguments of the attention call that follows, and the modulation table `E` of a block,
which `modulation_table` reads off the block and its input. Guidance is inline too: its result is the first argument of
`scheduler.step`, its parts are the two outputs of the transformer in one step, conditional first.

Wrap bound methods on the live object (`pipe.scheduler`, `pipe`, `vae`) and only after a fault has been injected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline
from diffusers.models.autoencoders import autoencoder_kl_wan
from diffusers.models.transformers import transformer_wan
from diffusers.pipelines.wan import pipeline_wan_i2v
from einops import rearrange
from torch import Tensor
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from ported.wan import image, solver


@dataclass(frozen=True)
class Seam:
    """A function `getattr(owner, name)` worth wrapping.

    args: argument name -> (label, axes); result: (label, axes) or None. `{module}` in a label is the path of the module
    that is running. Axes name the dimensions in order.
    """

    part: str
    owner: Any
    name: str
    text: str
    args: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    result: tuple[str, str] | None = None


SEAMS: tuple[Seam, ...] = (
    Seam(
        "dit",
        transformer_wan,
        "dispatch_attention_fn",
        "every attention of the DiT: attn1 once (q and k rotated), attn2 once, with image tokens twice (image first)",
        {
            "query": ("{module}.q_rope", "b s heads d"),
            "key": ("{module}.k_rope", "b s heads d"),
            "value": ("{module}.v_heads", "b s heads d"),
        },
        ("{module}.attn", "b s heads d"),
    ),
    Seam(
        "dit",
        transformer_wan.WanAttnProcessor,
        "__call__",
        "one attention module: projections, norms, rotation, attention, output projection",
        {"hidden_states": ("{module}.in.hidden_states", "b s d")},
        ("{module}", "b s d"),
    ),
    Seam(
        "dit",
        transformer_wan.WanRotaryPosEmbed,
        "forward",
        "cos and sin of the token grid, every value twice; see rope_pairs",
        {},
        ("rope", "(cos, sin) of 1 s 1 d"),
    ),
    Seam(
        "vae",
        autoencoder_kl_wan.WanEncoder3d,
        "forward",
        "one chunk of the encoder (1 frame, then 4); feat_cache is the list of slots",
        {"x": ("encoder.in.x", "b c t h w")},
        ("encoder", "b 2z t h w"),
    ),
    Seam(
        "vae",
        autoencoder_kl_wan.WanDecoder3d,
        "forward",
        "one chunk of the decoder (1 latent frame); feat_cache is the list of slots",
        {"x": ("decoder.in.x", "b z 1 h w")},
        ("decoder", "b c t h w"),
    ),
    Seam(
        "vae",
        AutoencoderKLWan,
        "_encode",
        "whole video to moments",
        {"x": ("video", "b c t h w")},
        ("moments", "b 2z t h w"),
    ),
    Seam("vae", AutoencoderKLWan, "_decode", "latents to a clamped video", {"z": ("latents", "b z t h w")}),
    Seam("text", UMT5Attention, "compute_bias", "position bias of a block", {}, ("{module}.pos_bias", "1 heads q k")),
    Seam(
        "text",
        WanPipeline,
        "_get_t5_prompt_embeds",
        "prompts to features padded with zeros",
        {},
        ("prompt_embeds", "b l dim"),
    ),
    Seam("clip", image.OfficialClipProcessor, "__call__", "images to pixel_values", {}, ("pixel_values", "n c h w")),
    Seam("clip", WanImageToVideoPipeline, "encode_image", "images to features", {}, ("clip_fea", "n tokens dim")),
    Seam("conditioning", image.OfficialVideoProcessor, "preprocess", "resized picture", {}, ("picture", "b c h w")),
    Seam(
        "conditioning",
        pipeline_wan_i2v,
        "retrieve_latents",
        "mode of the posterior",
        {},
        ("condition_latents", "b z t h w"),
    ),
    Seam(
        "conditioning",
        WanImageToVideoPipeline,
        "prepare_latents",
        "noise, and 4 mask channels in front of 16 condition latents",
        {},
        ("(noise, y)", "b 16 t h w, b 20 t h w"),
    ),
    Seam("solver", solver, "official_table", "sigmas and timesteps of a run; native schedulers keep their own"),
    Seam(
        "solver",
        solver.OfficialUniPC,
        "step",
        "one solver step; model_output is the guided velocity",
        {"model_output": ("v", "b c t h w"), "timestep": ("t", ""), "sample": ("latent", "b c t h w")},
        ("(latent,)", "b c t h w"),
    ),
    Seam(
        "solver",
        solver.OfficialUniPC,
        "convert_model_output",
        "data prediction before the correction",
        {},
        ("x0", "b c t h w"),
    ),
    Seam("solver", solver.OfficialUniPC, "multistep_uni_c_bh_update", "corrector", {}, ("corrected", "b c t h w")),
    Seam("solver", solver.OfficialUniPC, "multistep_uni_p_bh_update", "predictor", {}, ("latent", "b c t h w")),
)


def rope_pairs(cos: Tensor, sin: Tensor) -> dict[str, Tensor]:
    """The port's tables `(1, s, 1, d)` as the real and imaginary part of the official multipliers, `(s, d/2)` each."""
    first = [rearrange(table, "1 s 1 (c two) -> two s c", two=2)[0] for table in (cos, sin)]
    return {"rope.grid.re": first[0], "rope.grid.im": first[1]}


def rope_table(rope: transformer_wan.WanRotaryPosEmbed) -> dict[str, Tensor]:
    """The whole table `(1024, d/2)`, by position, from the buffers `(1024, d)`."""
    return {"rope.freqs.re": rope.freqs_cos[:, ::2], "rope.freqs.im": rope.freqs_sin[:, ::2]}


def modulation_table(block: transformer_wan.WanTransformerBlock, temb: Tensor) -> Tensor:
    """`blocks.i.e`: what the block adds up inline, `(b, 6, d)` float32."""
    return block.scale_shift_table + temb.float()


def head_table(dit: transformer_wan.WanTransformer3DModel, temb: Tensor) -> Tensor:
    """`head.e` `(b, 2, d)` from the time embedding `(b, d)`."""
    return dit.scale_shift_table + temb[:, None]


def feature_slots(feat_cache: list[Any]) -> dict[str, Tensor]:
    """Slots of a feature cache by their number; empty slots and the marker 'Rep' hold no tensor."""
    return {str(i): slot for i, slot in enumerate(feat_cache) if isinstance(slot, torch.Tensor)}
