"""The networks of a checkpoint folder, and what they make of texts and pictures.

Folder: `config.json` and the transformer's safetensors; `Wan2.1_VAE`, `models_t5_umt5-xxl-enc-bf16` and
`models_clip_open-clip-xlm-roberta-large-vit-huge-14` as safetensors; `google/umt5-xxl/tokenizer.json`. A part of another
size than the published one has its configuration beside it: `vae_config.json`, `text_config.json`, `image_config.json`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.wan import conditioning, loading, text
from reference.wan.clip import CLIPVision
from reference.wan.config import CLIPConfig, DiTConfig, T5Config, VAEConfig
from reference.wan.dit import WanDiT
from reference.wan.t5 import UMT5Encoder

from .segment import Networks

T5_STEM = "models_t5_umt5-xxl-enc-bf16"
CLIP_STEM = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
NEGATIVE_PROMPT = text.FLF2V_NEGATIVE_PREFIX


class FileTokenizer:
    """The tokenizer of `google/umt5-xxl/tokenizer.json` with the call that `reference.wan.text` makes."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))

    def __call__(self, prompts: list[str], *, max_length: int, **_: Any) -> dict[str, Tensor]:
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.enable_padding(length=max_length, pad_id=0)
        encoded = self.tokenizer.encode_batch(prompts)
        return {
            "input_ids": torch.tensor([row.ids for row in encoded]),
            "attention_mask": torch.tensor([row.attention_mask for row in encoded]),
        }


@dataclass
class Models:
    """Everything that one generation needs; `autocast` is the transformer's dtype where it is not float32."""

    networks: Networks
    clip: CLIPVision
    text: UMT5Encoder
    tokenizer: text.Tokenizer
    autocast: torch.dtype | None = None
    texts: dict[str, Tensor] = field(default_factory=dict)  # prompts encoded so far

    def encode_text(self, prompt: str) -> Tensor:
        """Features `(L, dim)` of one prompt."""
        if prompt not in self.texts:
            self.texts[prompt] = text.encode_prompts(self.text, self.tokenizer, [prompt])[0]
        return self.texts[prompt]

    @torch.no_grad()
    def encode_pair(self, first: Tensor, last: Tensor) -> Tensor:
        """Features `(2, tokens, dim)` of a segment's two pictures."""
        return self.clip.encode_images([first, last])


def read_keyframe(path: Path) -> Tensor:
    """A picture file as `(3, H, W)` float32 in [−1, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return conditioning.image_to_tensor(torch.from_numpy(np.array(image.convert("RGB"))))


def load_models(folder: Path, dtype: torch.dtype = torch.float32) -> Models:
    """Load a checkpoint folder; the VAE and the picture encoder are float32, the transformer autocasts to `dtype`."""

    def config(name: str) -> dict[str, Any]:
        path = folder / f"{name}_config.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    half = None if dtype == torch.float32 else dtype
    dit_config = DiTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        dit = WanDiT(dit_config)
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        state |= loading.read_file(file)
    # The VAE is built with its buffers (mean and 1/std), which no state dict holds.
    vae_config = VAEConfig.from_dict(config("vae"))
    vae = loading.load_vae(folder / "Wan2.1_VAE.safetensors", vae_config)
    clip = loading.load_clip(
        folder / f"{CLIP_STEM}.safetensors", CLIPConfig.from_dict(config("image")), dtype=torch.float32
    )
    t5 = loading.load_t5(folder / f"{T5_STEM}.safetensors", T5Config.from_dict(config("text")), dtype=dtype)
    return Models(
        networks=Networks(loading.load_strict(dit, state, torch.float32), vae),
        clip=clip,
        text=t5,
        tokenizer=FileTokenizer(folder / "google" / "umt5-xxl" / "tokenizer.json"),
        autocast=half,
    )
