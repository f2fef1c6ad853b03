"""Strict loading of official weights from safetensors (spec 1.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .config import REAL_POSE_ENCODER, REAL_UNET, REAL_VAE, REAL_WHISPER
from .pose_encoder import PoseEncoder
from .unet import DenoisingUNet, ReferenceUNet
from .vae import VAE
from .whisper import WhisperEncoder

M = TypeVar("M", bound=nn.Module)


def read_state(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors of one safetensors file; with a prefix only those below it, without it.

    Errors: ValueError for any other format. Pickled checkpoints (`.pth`, `.pt`) are refused: convert them first.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: not a .safetensors file; pickled checkpoints are never opened, convert them first")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a mapping)
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


def load_strict(model: M, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> M:
    """Give `model`, which may be on the meta device, the tensors of `state`, cast to `dtype` when it is given.

    Errors: one ValueError that lists all missing, unexpected and misshapen keys; the model is then untouched. Upstream
    loads the denoiser without looking (`strict=False`), see quirk `non-strict`.
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


def load_denoising_unet(
    unet: str | Path, motion: str | Path | None = None, dtype: torch.dtype = torch.float16
) -> DenoisingUNet:
    """Load the denoiser, and the motion modules from a file of their own where they are not in the first."""
    state = read_state(unet) | ({} if motion is None else read_state(motion))
    with torch.device("meta"):
        model = DenoisingUNet(REAL_UNET)
    return load_strict(model, state, dtype)


def load_reference_unet(path: str | Path, dtype: torch.dtype = torch.float16) -> ReferenceUNet:
    """Load the reference network."""
    with torch.device("meta"):
        model = ReferenceUNet(REAL_UNET)
    return load_strict(model, read_state(path), dtype)


def load_pose_encoder(path: str | Path, dtype: torch.dtype = torch.float16) -> PoseEncoder:
    """Load the pose encoder."""
    with torch.device("meta"):
        model = PoseEncoder(REAL_POSE_ENCODER)
    return load_strict(model, read_state(path), dtype)


def load_vae(path: str | Path, dtype: torch.dtype = torch.float16) -> VAE:
    """Load the image VAE."""
    with torch.device("meta"):
        model = VAE(REAL_VAE)
    return load_strict(model, read_state(path), dtype)


def load_audio_model(path: str | Path, dtype: torch.dtype = torch.float16) -> WhisperEncoder:
    """Load the encoder of Whisper tiny from below `encoder.`; the decoder is not used."""
    with torch.device("meta"):
        model = WhisperEncoder(REAL_WHISPER)
    return load_strict(model, read_state(path, prefix="encoder."), dtype)
