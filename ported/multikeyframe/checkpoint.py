"""A checkpoint folder in the official layout, as one diffusers pipeline. Only safetensors is read.

`config.json` and `diffusion_pytorch_model*.safetensors`, `Wan2.1_VAE`, `models_t5_umt5-xxl-enc-bf16` and
`models_clip_open-clip-xlm-roberta-large-vit-huge-14` as safetensors, `google/umt5-xxl/tokenizer.json`. A part of another
size than the published one has its configuration in `vae_config.json`, `text_config.json`, `image_config.json`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from ported.multikeyframe.errors import InputError
from ported.wan import load, pipeline, solver

TOKENIZER = Path("google", "umt5-xxl", "tokenizer.json")


def load_pipe(folder: Path, dtype: torch.dtype, shift: float) -> pipeline.Pipe:
    """The library's pipeline with all parts; transformer and text encoder in `dtype`, the others float32."""
    try:
        parts = {
            "dit": load.load_official(folder, "dit", dtype),
            "vae": load.load_official(folder, "vae", torch.float32, own_config(folder, "vae")),
            "text": load.load_official(folder, "text", dtype, own_config(folder, "text")),
            "image": load.load_official(folder, "image", torch.float32, own_config(folder, "image")),
        }
    except (ValueError, OSError) as error:
        raise InputError(f"checkpoint {folder}: {' '.join(str(error).split())[:300]}") from None
    return assemble(parts, read_tokenizer(folder / TOKENIZER), shift)


def own_config(folder: Path, part: str) -> dict[str, Any] | None:
    """The configuration that lies beside a part, or None for the published one."""
    path = folder / f"{part}_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer file with UMT5's special tokens."""
    if not path.is_file():
        raise InputError(f"Required file not found: {path}")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def assemble(parts: dict[str, Any], tokenizer: Any, shift: float) -> pipeline.Pipe:
    """Pipeline of loaded parts, with the official tables and picture rules."""
    pipe = pipeline.build_pipeline(
        parts["dit"], solver.build_scheduler("unipc", shift), parts["vae"], parts["image"], parts["text"]
    )
    pipe.register_modules(tokenizer=tokenizer)
    return pipe
