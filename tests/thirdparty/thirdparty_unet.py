"""A tiny UNet and a tiny autoencoder of diffusers, and ways to break a copy: norms over other groups, other timestep embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from thirdparty_wan import patch_forward
from torch import Tensor, nn
from torch.nn import functional


def _finish(model: nn.Module) -> nn.Module:
    """Move what starts at one or zero, so that gains and biases matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build_unet(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return _finish(model).to(dtype)


def unet_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return latents [b c h w] with h ≠ w, one timestep a sample, and text states [b l d]."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 6, 10, generator=generator).to(dtype),
        "timestep": torch.tensor([937, 250]),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=generator).to(dtype),
    }


def build_vae(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return _finish(model).to(dtype)


def vae_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"sample": torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(2)).to(dtype)}


MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[..., dict[str, Tensor]]]] = {
    "unet": (build_unet, unet_inputs),
    "vae": (build_vae, vae_inputs),
}


@dataclass(frozen=True)
class Break:
    """A fault: on which model, the module that it changes, how, and the class that names it."""

    name: str
    model: str
    module: str
    class_id: str
    change: Callable[[Any], None]


def _groups(number: int) -> Callable[[Any], None]:
    def change(norm: Any) -> None:
        norm.num_groups = number

    return change


def _per_row(norm: Any) -> None:
    """Statistics of every row of the picture alone."""

    def forward(self: Any, original: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.transpose(1, 2).reshape(b * h, c, w)
        normed = functional.group_norm(rows, self.num_groups, self.weight, self.bias, self.eps)
        return normed.reshape(b, h, c, w).transpose(1, 2)

    patch_forward(norm, forward)


def _over_batch(norm: Any) -> None:
    """Statistics of all samples together."""

    def forward(self: Any, original: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        whole = x.transpose(0, 1).reshape(1, c, b * h, w)
        normed = functional.group_norm(whole, self.num_groups, self.weight, self.bias, self.eps)
        return normed.reshape(c, b, h, w).transpose(0, 1)

    patch_forward(norm, forward)


def _strided_groups(norm: Any) -> None:
    """Group g takes channels g, g + n, g + 2n, … in place of neighbours."""

    def forward(self: Any, original: Any, x: Tensor) -> Tensor:
        order = torch.arange(x.shape[1]).reshape(-1, self.num_groups).T.flatten()
        normed = functional.group_norm(x[:, order], self.num_groups, None, None, self.eps)[:, order.argsort()]
        return normed * self.weight[:, None, None] + self.bias[:, None, None]

    patch_forward(norm, forward)


def _setting(name: str, value: Any) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, value)


def _period(sinusoid: Any) -> None:
    def forward(self: Any, original: Any, timesteps: Tensor) -> Tensor:
        return get_timestep_embedding(
            timesteps, self.num_channels, self.flip_sin_to_cos, self.downscale_freq_shift, self.scale, max_period=1000
        )

    patch_forward(sinusoid, forward)


FAULTS = (
    Break("one_group", "unet", "down_blocks.0.resnets.0.norm1", "N7", _groups(1)),
    Break("more_groups", "unet", "mid_block.resnets.0.norm2", "N7", _groups(8)),
    Break("group_per_channel", "unet", "up_blocks.1.attentions.0.norm", "N7", _groups(16)),
    Break("norm_per_row", "unet", "up_blocks.0.resnets.0.norm1", "N7", _per_row),
    Break("norm_over_batch", "unet", "conv_norm_out", "N7", _over_batch),
    Break("strided_groups", "unet", "mid_block.resnets.1.norm1", "N7", _strided_groups),
    Break("norm_eps", "unet", "mid_block.attentions.0.norm", "N1", _setting("eps", 1e-5)),
    Break("flip_sin_to_cos", "unet", "time_proj", "T2", _setting("flip_sin_to_cos", False)),
    Break("freq_shift", "unet", "time_proj", "T2", _setting("downscale_freq_shift", 1)),
    Break("max_period", "unet", "time_proj", "T2", _period),
    Break("time_scale", "unet", "time_proj", "T6", _setting("scale", 1000)),
    Break("vae_one_group", "vae", "decoder.conv_norm_out", "N7", _groups(1)),
    Break("vae_attention_norm", "vae", "encoder.mid_block.attentions.0.group_norm", "N7", _groups(16)),
    Break("vae_norm_over_batch", "vae", "decoder.up_blocks.0.resnets.1.norm1", "N7", _over_batch),
    Break("vae_eps", "vae", "encoder.down_blocks.0.resnets.0.norm1", "N1", _setting("eps", 1e-5)),
)


def broken(fault: Break, model: nn.Module) -> nn.Module:
    port = copy.deepcopy(model)
    fault.change(port.get_submodule(fault.module))
    return port
