"""Write a tiny random checkpoint in the official layout: `python -m ported.multikeyframe.tiny FOLDER`.

Everything about it is real but its size, so that the whole generator can be tried on a CPU in seconds.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ported.multikeyframe.checkpoint import TOKENIZER
from ported.wan import build, keys, tiny

DIT: dict[str, Any] = {
    "model_type": "flf2v", "dim": 64, "num_heads": 2, "ffn_dim": 96, "num_layers": 2, "freq_dim": 32, "in_dim": 36,
    "out_dim": 16, "text_dim": 24, "clip_dim": 20, "clip_tokens": 17,
}  # fmt: skip
VAE: dict[str, Any] = {"dim": 4, "z_dim": 16}
TEXT: dict[str, Any] = {
    "vocab": 264, "dim": 24, "dim_attn": 32, "dim_ffn": 40, "num_heads": 4, "num_layers": 2, "num_buckets": 32,
}  # fmt: skip
IMAGE: dict[str, Any] = {"image_size": 56, "patch_size": 14, "dim": 20, "num_heads": 2, "num_layers": 3, "out_dim": 8}
SPECIAL = ("<pad>", "</s>", "<unk>")


def official_weights(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random weights of every part under official keys."""
    models = {
        "dit": build.build_dit(DIT),
        "vae": build.build_vae(VAE),
        "text": build.build_text_encoder(TEXT),
        "image": build.build_image_encoder(IMAGE),
    }
    found = {
        part: keys.to_official(part, tiny.fill(model, seed + i).state_dict())
        for i, (part, model) in enumerate(models.items())
    }
    dim = IMAGE["dim"]
    found["image"].setdefault("head", torch.zeros(dim, IMAGE["out_dim"]))  # in the checkpoint, and never used
    return {part: {name: value.clone().contiguous() for name, value in state.items()} for part, state in found.items()}


def write_checkpoint(folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write parts, configurations and a byte tokenizer."""
    names = {
        "dit": ("diffusion_pytorch_model", "", "config", DIT),
        "vae": ("Wan2.1_VAE", "", "vae_config", VAE),
        "text": ("models_t5_umt5-xxl-enc-bf16", "", "text_config", TEXT),
        "image": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14", "visual.", "image_config", IMAGE),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, (stem, prefix, config, values) in names.items():
        save_file({prefix + name: value for name, value in weights[part].items()}, folder / f"{stem}.safetensors")
        (folder / f"{config}.json").write_text(json.dumps(values), encoding="utf-8")
    write_tokenizer(folder / TOKENIZER)


def write_tokenizer(path: Path) -> None:
    """A tokenizer with one token a byte and UMT5's special tokens; the end token is added to every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ported.multikeyframe.tiny FOLDER")
    write_checkpoint(Path(sys.argv[1]), official_weights())
    print(f"{sys.argv[1]}: a tiny FLF2V checkpoint")
