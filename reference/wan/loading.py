"""Strict loading of official weights from safetensors: one file, or a folder with an index of shards."""

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .clip import CLIPVision
from .config import CLIPConfig, DiTConfig, T5Config, VAEConfig
from .dit import WanDiT
from .t5 import UMT5Encoder
from .vae import WanVAE

M = TypeVar("M", bound=nn.Module)


def read_file(path: Path) -> dict[str, Tensor]:
    """Read every tensor of one safetensors file.

    Errors: ValueError for any other format. Pickled checkpoints (`.pth`) are refused: convert them to safetensors.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: not a .safetensors file; pickled checkpoints are never opened, convert them first")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def read_shards(index: Path) -> dict[str, Tensor]:
    """Read what an index (`{"weight_map": {key: file}}`) lists from the shards beside it.

    Errors: ValueError that lists the keys which a shard lacks or has beyond the index, or a shard outside the folder.
    """
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    state: dict[str, Tensor] = {}
    problems = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: shard {name!r} is not a file of this folder")
        shard = read_file(index.parent / name)
        listed = {key for key, file in weight_map.items() if file == name}
        problems += [f"{name} lacks {key}" for key in sorted(listed - shard.keys())]
        problems += [f"{name} has {key}, not in the index" for key in sorted(shard.keys() - listed)]
        state |= shard
    if problems:
        raise ValueError(f"{index}: index and shards disagree: " + "; ".join(problems))
    return state


def read_state(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Read a state dict from a file or a folder (one index, or else one safetensors file).

    With a prefix only the keys below it are taken, without it (`"visual."` for the CLIP checkpoint).

    Errors: ValueError when the folder does not say which file is meant.
    """
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        files = sorted(path.glob("*.safetensors"))
        if len(indices) > 1 or (not indices and len(files) != 1):
            raise ValueError(
                f"{path}: expected one *.safetensors.index.json or one *.safetensors, "
                f"found {[p.name for p in indices + files]}"
            )
        state = read_shards(indices[0]) if indices else read_file(files[0])
    else:
        state = read_file(path)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_strict(model: M, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> M:
    """Give `model`, which may be on the meta device, the tensors of `state`, cast to `dtype` when it is given.

    Errors: one ValueError that lists all missing, unexpected and misshapen keys; the model is then untouched.
    """
    wanted = model.state_dict()
    lines = [f"missing: {key} {tuple(wanted[key].shape)}" for key in sorted(wanted.keys() - state.keys())]
    lines += [f"unexpected: {key} {tuple(state[key].shape)}" for key in sorted(state.keys() - wanted.keys())]
    lines += [
        f"shape: {key} is {tuple(state[key].shape)}, the model needs {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if wanted[key].shape != state[key].shape
    ]
    if lines:
        raise ValueError(f"{type(model).__name__}: the state dict does not fit:\n  " + "\n  ".join(lines))
    # Always a copy: tensors of a mapped file may lie unaligned, and BLAS then sums in another order.
    cast = {key: value.to(dtype or value.dtype, copy=True) for key, value in state.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def load_dit(folder: str | Path, dtype: torch.dtype = torch.float32) -> WanDiT:
    """Load an official checkpoint folder: `config.json` and one file or an index with shards; float32 as upstream."""
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{config_file}: no such file; the official checkpoint folder has one")
    config = DiTConfig.from_dict(json.loads(config_file.read_text()))
    with torch.device("meta"):
        model = WanDiT(config)
    return load_strict(model, read_state(folder), dtype)


def load_vae(path: str | Path, config: VAEConfig | None = None) -> WanVAE:
    """Load the VAE, float32."""
    with torch.device("meta"):
        model = WanVAE(config or VAEConfig())
    return load_strict(model, read_state(path), torch.float32)


def load_t5(path: str | Path, config: T5Config | None = None, dtype: torch.dtype = torch.bfloat16) -> UMT5Encoder:
    """Load the UMT5 encoder, bf16 as upstream."""
    with torch.device("meta"):
        model = UMT5Encoder(config or T5Config())
    return load_strict(model, read_state(path), dtype)


def load_clip(path: str | Path, config: CLIPConfig | None = None, dtype: torch.dtype = torch.float16) -> CLIPVision:
    """Load the vision tower below `visual.`, fp16 as upstream."""
    with torch.device("meta"):
        model = CLIPVision(config or CLIPConfig())
    return load_strict(model, read_state(path, prefix="visual."), dtype)
