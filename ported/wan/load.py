"""Load the port from a diffusers folder or an official Wan folder. Only safetensors is read; nothing is unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from ported.wan import build, configs

_CLASSES: dict[str, tuple[str, Any]] = {
    "dit": ("transformer", WanTransformer3DModel),
    "vae": ("vae", AutoencoderKLWan),
    "text": ("text_encoder", UMT5EncoderModel),
    "image": ("image_encoder", CLIPVisionModel),
}
# stem of the official file, prefix of its keys, configuration; the DiT has a config.json and may be in shards
_OFFICIAL: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "vae": ("Wan2.1_VAE", "", configs.REAL_VAE),
    "text": ("models_t5_umt5-xxl-enc-bf16", "", configs.REAL_TEXT),
    "image": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14", "visual.", configs.REAL_IMAGE),
}


def load_diffusers(folder: str | Path, component: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load one component (`dit`, `vae`, `text`, `image`) from a folder in diffusers layout with `from_pretrained`.

    Half precision goes through the library, which keeps its list of modules in float32. Raises ValueError when the
    folder has no such part; never reaches for the network.
    """
    subfolder, cls = _CLASSES[component]
    if not (Path(folder) / subfolder / "config.json").is_file():
        raise ValueError(f"{folder} has no {subfolder}/config.json: not a diffusers folder with a {component}")
    precision = {"dtype" if component in ("text", "image") else "torch_dtype": dtype}
    model = cls.from_pretrained(folder, subfolder=subfolder, local_files_only=True, use_safetensors=True, **precision)
    return model.eval().requires_grad_(False)


def expected_shapes(folder: str | Path, component: str) -> dict[str, torch.Size]:
    """The tensors that a component of this configuration has: state-dict key -> shape. Nothing is allocated."""
    subfolder, cls = _CLASSES[component]
    with torch.device("meta"):
        if component in ("text", "image"):
            model = cls(cls.config_class.from_pretrained(folder, subfolder=subfolder, local_files_only=True))
        else:
            model = cls.from_config(cls.load_config(folder, subfolder=subfolder, local_files_only=True))
    return {name: value.shape for name, value in model.state_dict().items()}


def load_scheduler(folder: str | Path) -> Any:
    """The scheduler of a diffusers folder, with the library's own table."""
    return UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)


def load_official(
    folder: str | Path, component: str, dtype: torch.dtype = torch.float32, config: Mapping[str, Any] | None = None
) -> Any:
    """Load one component from an official Wan folder, converting its keys.

    The DiT is read from `config.json` and `diffusion_pytorch_model*.safetensors`. The other parts are published as
    pickles, which are not read: convert them to `<same stem>.safetensors` first (ValueError says which file).
    """
    folder = Path(folder)
    if component == "dit":
        path = folder / "config.json"
        if config is None and not path.is_file():
            raise ValueError(f"{folder} has no config.json: not an official Wan folder")
        config = config or json.loads(path.read_text(encoding="utf-8"))
        files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
        if not files:
            raise ValueError(f"{folder} has no diffusion_pytorch_model*.safetensors")
        return build.build_dit(config, merged(files), dtype)
    stem, prefix, real = _OFFICIAL[component]
    path = folder / f"{stem}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; the published {stem}.pth is a pickle and is not read: convert it first")
    found = {key.removeprefix(prefix): value for key, value in load_file(path).items() if key.startswith(prefix)}
    builders = {"vae": build.build_vae, "text": build.build_text_encoder, "image": build.build_image_encoder}
    return builders[component](config or real, found, dtype)


def merged(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of several shards; a key in two shards is an error."""
    state: dict[str, Tensor] = {}
    for file in files:
        shard = load_file(file)
        twice = sorted(state.keys() & shard.keys())
        if twice:
            raise ValueError(f"{file} repeats keys of an earlier shard: {twice}")
        state |= shard
    return state
