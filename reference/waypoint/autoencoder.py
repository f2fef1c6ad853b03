"""Image autoencoder, one latent frame an image (spec waypoint, section 9).

Every convolution is weight-normalised: the checkpoint holds magnitude g (`original0`) and direction v (`original1`), W
= g * v / ||v||. `bake_weight_norm` replaces the pair by the plain weight after loading. Scale 1 and shift 0: latents go
in and out as they are. Precision: the dtype of the weights; on a GPU bf16 autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

ENCODER_INPUT = (512, 512)  # every image is resized to this before encoding
DECODER_OUTPUT = (360, 640)  # and every decoded frame to this


@dataclass(frozen=True)
class AutoencoderConfig:
    """Hold the sizes of an encoder or a decoder; each reads its own `*_blocks_per_stage`."""

    channels: int
    latent_channels: int
    ch_0: int  # width next to the image
    ch_max: int
    encoder_blocks_per_stage: tuple[int, ...] = (1, 1, 1, 1)
    decoder_blocks_per_stage: tuple[int, ...] = (1, 1, 1, 1)  # deepest stage first
    skip_logvar: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Build a config from a mapping; unknown keys raise a ValueError that lists them."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"cannot build an autoencoder config: unknown keys {unknown}. Known keys: {sorted(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


WAYPOINT_1_SMALL_ENCODER = AutoencoderConfig(channels=3, latent_channels=16, ch_0=64, ch_max=256)
WAYPOINT_1_SMALL_DECODER = AutoencoderConfig(channels=3, latent_channels=16, ch_0=128, ch_max=1024)


def conv(dim_in: int, dim_out: int, kernel: int, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a weight-normalised convolution that keeps the size."""
    return weight_norm(nn.Conv2d(dim_in, dim_out, kernel, padding=kernel // 2, groups=groups, bias=bias))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [B,C,h,w] bicubically, corners not aligned, no antialias."""
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False)


def scale(x: Tensor, factor: float) -> Tensor:
    """Resize [B,C,h,w] by a factor, as `resize`."""
    return resize(x, (int(x.shape[-2] * factor), int(x.shape[-1] * factor)))


class ResBlock(nn.Module):
    """Compute x + conv3(lrelu(conv2(lrelu(conv1(x))))); conv2 is grouped, 16 channels a group."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        self.conv1 = conv(ch, 2 * ch, 1)
        self.conv2 = conv(2 * ch, 2 * ch, 3, groups=max(1, 2 * ch // 16))
        self.conv3 = conv(2 * ch, ch, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), 0.01)
        return x + self.conv3(F.leaky_relu(self.conv2(h), 0.01))


class Projection(nn.Module):
    """Hold one convolution under the name `proj`."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = conv(dim_in, dim_out, kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DecoderIn(nn.Module):
    """Widen the latent: proj(z) plus each latent channel repeated r times CONSECUTIVELY, times r^-0.5."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = conv(dim_in, dim_out, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.proj(z)
        r = h.shape[1] // z.shape[1]
        return h + repeat(z, "b c h w -> b (c r) h w", r=r) * r**-0.5


class EncoderOut(nn.Module):
    """Narrow to the latent: proj(x) plus the mean over g of channels viewed as [g, latent], times sqrt(g)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = conv(dim_in, dim_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(x)
        g = x.shape[1] // z.shape[1]
        return z + reduce(x, "b (g c) h w -> b c h w", "mean", g=g) * g**0.5


class PixelUp(nn.Module):
    """Double the size by a convolution and pixel shuffle: the decoder's residual path."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = conv(dim_in, dim_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.proj(x), 2)


class PixelDown(nn.Module):
    """Halve the size by a convolution and pixel unshuffle: the encoder's residual path."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = conv(dim_in, dim_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.proj(x), 2)


class UpStage(nn.Module):
    """Project (unless the width stays), resize x2, then residual blocks at the new width."""

    def __init__(self, dim_in: int, dim_out: int, n_blocks: int) -> None:
        super().__init__()
        self.up = Projection(dim_in, dim_out, 1, bias=False) if dim_in != dim_out else None
        self.blocks = nn.ModuleList(ResBlock(dim_out) for _ in range(n_blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = scale(x if self.up is None else self.up(x), 2)
        for block in self.blocks:
            x = block(x)
        return x


class DownStage(nn.Module):
    """Residual blocks at the old width, resize x0.5, then project, also where the width stays (unlike the decoder)."""

    def __init__(self, dim_in: int, dim_out: int, n_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(dim_in) for _ in range(n_blocks))
        self.down = Projection(dim_in, dim_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.down(scale(x, 0.5))


class Decoder(nn.Module):
    """Decode a latent [B,latent,h,w] to an image [B,channels,360,640] in about [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        n_blocks = config.decoder_blocks_per_stage
        widths = [config.ch_0]  # from the image inwards
        for _ in n_blocks:
            widths.append(min(2 * widths[-1], config.ch_max))
        stages = list(zip(widths[:0:-1], widths[-2::-1], n_blocks, strict=True))
        self.conv_in = DecoderIn(config.latent_channels, config.ch_max)
        self.blocks = nn.ModuleList(UpStage(i, o, n) for i, o, n in stages)
        self.residuals = nn.ModuleList(PixelUp(i, 4 * o) for i, o, _ in stages)
        self.conv_out = Projection(config.ch_0, config.channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block, residual in zip(self.blocks, self.residuals, strict=True):
            x = block(x) + residual(x)
        return resize(self.conv_out(F.silu(x)), DECODER_OUTPUT)


class Encoder(nn.Module):
    """Encode an image [B,channels,H,W] in [-1, 1] to a latent [B,latent,h,w]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        n_blocks = config.encoder_blocks_per_stage
        widths = [config.ch_0]
        for _ in n_blocks:
            widths.append(min(2 * widths[-1], config.ch_max))
        stages = list(zip(widths[:-1], widths[1:], n_blocks, strict=True))
        self.conv_in = Projection(config.channels, config.ch_0, 3)
        self.blocks = nn.ModuleList(DownStage(i, o, n) for i, o, n in stages)
        self.residuals = nn.ModuleList(PixelDown(i, o // 4) for i, o, _ in stages)
        self.conv_out = EncoderOut(widths[-1], config.latent_channels)
        if not config.skip_logvar:
            self.conv_out_logvar = conv(widths[-1], 1, 3)  # in the checkpoint, unused

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(resize(x, ENCODER_INPUT))
        for block, residual in zip(self.blocks, self.residuals, strict=True):
            x = block(x) + residual(x)
        return self.conv_out(x)


class Autoencoder(nn.Module):
    """Turn uint8 images into latents and back."""

    def __init__(
        self,
        encoder: AutoencoderConfig = WAYPOINT_1_SMALL_ENCODER,
        decoder: AutoencoderConfig = WAYPOINT_1_SMALL_DECODER,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.decoder = Decoder(decoder)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Encode an image uint8 [H,W,C] to a latent [1,latent,h,w]; channels are added as zeros or dropped to fit."""
        conv_in = self.encoder.conv_in.proj
        x = rearrange(image, "h w c -> 1 c h w").to(conv_in.weight.device, conv_in.weight.dtype) / 255 * 2 - 1
        x = F.pad(x, (0, 0, 0, 0, 0, conv_in.in_channels - x.shape[1]))  # a negative pad drops channels
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=x.is_cuda):
            return self.encoder(x)

    @torch.no_grad()
    def decode_raw(self, latent: Tensor) -> Tensor:
        """Decode a latent [1,latent,h,w] to the decoder's own range, [1,channels,360,640]."""
        weight = self.decoder.conv_in.proj.weight
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=weight.is_cuda):
            return self.decoder(latent.to(weight.device, weight.dtype))

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a latent [1,latent,h,w] to an image uint8 [360,640,3]."""
        return to_uint8(self.decode_raw(latent))


def to_uint8(y: Tensor) -> Tensor:
    """Map [1,C,H,W] in [-1,1] to uint8 [H,W,3]: clamp, times 255, ROUND."""
    pixels = ((y / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pixels[:, :3], "1 c h w -> h w c")


def bake_weight_norm(model: nn.Module) -> int:
    """Replace every weight-norm pair by the plain weight, in place; returns how many were replaced."""
    normed = [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]
    for module in normed:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return len(normed)
