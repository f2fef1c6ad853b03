"""Tiny random Wan models of the port: every part, in the shapes of spec A1 with small numbers, for tests and trials.

Parameters follow the golden files' rule (spec Part E), so that no path is silent: weights N(0, 1.44/fan_in), biases
0.1·N, norm gains 1 + 0.2·N, modulation 0.3·N.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from ported.wan import build, pipeline, solver

TEXT_DIM, CLIP_DIM, IMAGE_SIZE = 24, 20, 56
CLIP_TOKENS = (IMAGE_SIZE // 14) ** 2 + 1
FRAMES, LATENT = 9, (3, 4, 6)  # frames, and latent frames, rows, columns: all different


def fill(model: Any, seed: int = 0) -> Any:
    """Give every parameter a random value by the rule above, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("scale_shift_table") or "pos_embed" in name or "position" in name:
            value = 0.3 * noise
        elif ("norm" in name.split(".")[-2] and name.endswith("weight")) or name.endswith("gamma"):
            value = 1 + 0.2 * noise
        elif parameter.ndim > 1:
            value = noise * 1.2 / parameter[0].numel() ** 0.5
        else:
            value = 0.1 * noise
        parameter.data = value.to(parameter.dtype)
    return model


def dit(kind: str = "t2v", head_dim: int = 40, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """Two blocks of two heads."""
    config = {
        "model_type": kind,
        "dim": 2 * head_dim,
        "num_heads": 2,
        "ffn_dim": 96,
        "num_layers": 2,
        "freq_dim": 32,
        "in_dim": 16 if kind == "t2v" else 36,
        "text_dim": TEXT_DIM,
        "clip_dim": CLIP_DIM,
        "clip_tokens": CLIP_TOKENS,
    }
    return build.cast_like_library(fill(build.build_dit(config)), dtype)


def vae() -> AutoencoderKLWan:
    """Base width 4."""
    return fill(build.build_vae({"dim": 4}))


def text_encoder() -> UMT5EncoderModel:
    """Two blocks over a vocabulary of 50."""
    config = {"vocab": 50, "dim": TEXT_DIM, "dim_attn": 32, "dim_ffn": 40, "num_heads": 4, "num_layers": 2}
    return fill(build.build_text_encoder(config))


def image_encoder() -> CLIPVisionModel:
    """Three blocks over 16 patches."""
    config = {"dim": CLIP_DIM, "num_heads": 2, "num_layers": 3, "image_size": IMAGE_SIZE, "patch_size": 14}
    return fill(build.build_image_encoder(config))


def pipe(kind: str = "t2v", **options: Any) -> pipeline.Pipe:
    """A whole pipeline on official tables and picture rules; options of `solver.build_scheduler`."""
    parts: list[nn.Module | None] = [vae(), None if kind == "t2v" else image_encoder(), text_encoder()]
    return pipeline.build_pipeline(dit(kind), solver.build_scheduler(**options), *parts)


def request(kind: str = "t2v", steps: int = 3, seed: int = 0) -> pipeline.Request:
    """Noise, unequal prompts, and for flf2v images of different sizes, none of them square."""
    generator = torch.Generator().manual_seed(seed)

    def picture(height: int, width: int) -> torch.Tensor:
        return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)

    return pipeline.Request(
        noise=torch.randn(16, *LATENT, generator=generator),
        positive=torch.randn(11, TEXT_DIM, generator=generator),
        negative=torch.randn(5, TEXT_DIM, generator=generator),
        steps=steps,
        guidance=5.0,
        image=None if kind == "t2v" else picture(40, 60),
        last_image=picture(60, 80) if kind == "flf2v" else None,
    )
