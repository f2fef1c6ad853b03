"""Build the port's modules from an official config and an official state dict, and give them the library's precision.

Every builder checks the keys first (one ValueError lists them all), loads strictly, and returns a module in `eval()`
on the device of the weights. `dtype` casts as `from_pretrained(torch_dtype=...)` does: modules that the library keeps
in float32 stay there (spec B4); `keep_fp32=False` is a plain `.to(dtype)`, which also casts the rotary tables.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from ported.wan import configs, keys

State = Mapping[str, Tensor]
Config = Mapping[str, Any]


def build_dit(
    config: Config, state: State | None = None, dtype: torch.dtype = torch.float32, keep_fp32: bool = True
) -> WanTransformer3DModel:
    """Build `WanTransformer3DModel` from an official config and state dict (None: initial weights)."""
    model = WanTransformer3DModel(**configs.dit_arguments(config))
    return _finish("dit", model, state, dtype, keep_fp32)


def build_vae(
    config: Config, state: State | None = None, dtype: torch.dtype = torch.float32, keep_fp32: bool = True
) -> AutoencoderKLWan:
    """Build `AutoencoderKLWan`; the key map covers four levels of two Res blocks, as all Wan2.1 VAEs have."""
    model = AutoencoderKLWan(**configs.vae_arguments(config))
    return _finish("vae", model, state, dtype, keep_fp32)


def build_text_encoder(
    config: Config, state: State | None = None, dtype: torch.dtype = torch.float32, keep_fp32: bool = True
) -> UMT5EncoderModel:
    """Build `UMT5EncoderModel`; `shared` and `encoder.embed_tokens` stay one tensor."""
    model = UMT5EncoderModel(UMT5Config(**configs.text_arguments(config)))
    return _finish("text", model, state, dtype, keep_fp32)


def build_image_encoder(
    config: Config, state: State | None = None, dtype: torch.dtype = torch.float32, keep_fp32: bool = True
) -> CLIPVisionModel:
    """Build `CLIPVisionModel`; the official projection `head` is not part of it and is ignored."""
    model = CLIPVisionModel(CLIPVisionConfig(**configs.image_arguments(config)))
    return _finish("image", model, state, dtype, keep_fp32)


def load_official(component: str, model: nn.Module, state: State) -> None:
    """Convert an official state dict and load it strictly into `model`; ValueError lists wrong keys or shapes."""
    converted = keys.to_port(component, state)
    own = model.state_dict()
    keys.check_same_keys(component, own, converted)
    wrong = {k: (tuple(converted[k].shape), tuple(own[k].shape)) for k in own if converted[k].shape != own[k].shape}
    if wrong:
        raise ValueError(f"{component}: shapes (given, expected) differ: {wrong}")
    model.load_state_dict(converted, strict=True)


def cast_like_library(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast in place as `from_pretrained(torch_dtype=dtype)` does.

    A parameter stays float32 if a part of its name is on the model's keep list:
    diffusers keeps its list in every half precision; transformers keeps `wo` of UMT5 in fp16 only. Buffers (the rotary
    tables) are made in float32 and are not cast by loading.
    """
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if isinstance(model, UMT5EncoderModel) and dtype != torch.float16:
        keep = set()
    for name, parameter in model.named_parameters():
        if not keep & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


def _finish(component: str, model: nn.Module, state: State | None, dtype: torch.dtype, keep_fp32: bool) -> Any:
    if state is not None:
        load_official(component, model, state)
    if dtype != torch.float32:
        model = cast_like_library(model, dtype) if keep_fp32 else model.to(dtype)
    return model.eval().requires_grad_(False)
