"""The port's image autoencoder (spec A9). Weight norm is baked into plain convolutions when the weights are mapped.

Precision: runs in the dtype of its weights, fp32 in the port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

ENCODER_SIZE = (512, 512)
DECODER_SIZE = (360, 640)


@dataclass(frozen=True)
class HalfConfig:
    """One half of the autoencoder: its "encoder" or "decoder" mapping in the config file."""

    channels: int
    latent_channels: int
    ch_0: int
    ch_max: int
    encoder_blocks_per_stage: tuple[int, ...]
    decoder_blocks_per_stage: tuple[int, ...]
    skip_logvar: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> HalfConfig:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def conv3(d_in: int, d_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(d_in, d_out, 3, padding=1, groups=groups)


def conv1(d_in: int, d_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(d_in, d_out, 1, bias=bias)


def resize(x: Tensor, *, size: tuple[int, int] | None = None, factor: float | None = None) -> Tensor:
    return F.interpolate(x, size=size, scale_factor=factor, mode="bicubic", align_corners=False, antialias=False)


class ResBlock(nn.Module):
    """x + three convolutions at twice the width, the middle one grouped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.conv1 = conv1(channels, inner)
        self.conv2 = conv3(inner, inner, groups=max(1, inner // 16))
        self.conv3 = conv1(inner, channels, bias=False)
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class Projected(nn.Module):
    """A convolution under the key `proj`."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class UpStage(nn.Module):
    """(1x1 to the narrower width), twice the size, then residual blocks."""

    def __init__(self, d_in: int, d_out: int, n_blocks: int) -> None:
        super().__init__()
        self.up = Projected(conv1(d_in, d_out, bias=False)) if d_in != d_out else None
        self.blocks = nn.ModuleList(ResBlock(d_out) for _ in range(n_blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = resize(x if self.up is None else self.up(x), factor=2.0)
        for block in self.blocks:
            x = block(x)
        return x


class DownStage(nn.Module):
    """Residual blocks, half the size, 1x1 to the wider width."""

    def __init__(self, d_in: int, d_out: int, n_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(d_in) for _ in range(n_blocks))
        self.down = Projected(conv1(d_in, d_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.down(resize(x, factor=0.5))


class PixelShuffleUp(Projected):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.proj(x), 2)


class PixelShuffleDown(Projected):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.proj(x), 2)


class LatentIn(Projected):
    """3x3 to ch_max, plus every latent channel repeated r times in a row, over sqrt(r)."""

    def forward(self, x: Tensor) -> Tensor:
        r = self.proj.out_channels // self.proj.in_channels
        return self.proj(x) + repeat(x, "b c h w -> b (c r) h w", r=r) * r**-0.5


class LatentOut(Projected):
    """3x3 to the latent, plus the mean over g groups of channels, times sqrt(g); channels are [g, latent]."""

    def forward(self, x: Tensor) -> Tensor:
        g = self.proj.in_channels // self.proj.out_channels
        return self.proj(x) + reduce(x, "b (g c) h w -> b c h w", "mean", g=g) * g**0.5


class Encoder(nn.Module):
    def __init__(self, config: HalfConfig) -> None:
        super().__init__()
        self.conv_in = Projected(conv3(config.channels, config.ch_0))
        self.blocks, self.residuals = nn.ModuleList(), nn.ModuleList()
        width = config.ch_0
        for n_blocks in config.encoder_blocks_per_stage:
            wider = min(2 * width, config.ch_max)
            self.blocks.append(DownStage(width, wider, n_blocks))
            self.residuals.append(PixelShuffleDown(conv3(width, wider // 4)))
            width = wider
        self.conv_out = LatentOut(conv3(width, config.latent_channels))
        # Present in checkpoints, read by nothing.
        self.conv_out_logvar = None if config.skip_logvar else conv3(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] of any size -> [B, latent, 512 / 2^S, 512 / 2^S]."""
        x = self.conv_in(resize(x, size=ENCODER_SIZE))
        for block, residual in zip(self.blocks, self.residuals, strict=True):
            x = block(x) + residual(x)
        return self.conv_out(x)


class Decoder(nn.Module):
    def __init__(self, config: HalfConfig) -> None:
        super().__init__()
        self.conv_in = LatentIn(conv3(config.latent_channels, config.ch_max))
        self.blocks, self.residuals = nn.ModuleList(), nn.ModuleList()
        counts = config.decoder_blocks_per_stage
        outs = [min(config.ch_0 * 2**i, config.ch_max) for i in reversed(range(len(counts)))]
        for out, n_blocks in zip(outs, counts, strict=True):
            wider = min(2 * out, config.ch_max)
            self.blocks.append(UpStage(wider, out, n_blocks))
            self.residuals.append(PixelShuffleUp(conv3(wider, 4 * out)))
        self.conv_out = Projected(conv3(config.ch_0, config.channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, channels, 360, 640], about -1..1."""
        x = self.conv_in(x)
        for block, residual in zip(self.blocks, self.residuals, strict=True):
            x = block(x) + residual(x)
        return resize(self.conv_out(F.silu(x)), size=DECODER_SIZE)


class WaypointVAE(nn.Module):
    """Image <-> latent, both for one frame."""

    def __init__(self, encoder: HalfConfig, decoder: HalfConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.decoder = Decoder(decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.proj.weight.dtype

    def fit_channels(self, image: Tensor) -> Tensor:
        """Add zero channels or drop channels so that [1, C, H, W] fits the first convolution."""
        wanted = self.encoder.conv_in.proj.in_channels
        return F.pad(image, (0, 0, 0, 0, 0, wanted - image.shape[1]))

    def to_uint8(self, raw: Tensor) -> Tensor:
        """Decoder output [1, C, H, W] -> uint8 [H, W, 3], rounded."""
        unit = (raw.float() / 2 + 0.5).clamp(0, 1)
        return rearrange((unit[0, :3] * 255).round().to(torch.uint8), "c h w -> h w c")

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """uint8 [H, W, C] -> latent [1, latent, h, w]."""
        pixels = rearrange(image, "h w c -> 1 c h w").to(self.dtype) / 255 * 2 - 1
        return self.encoder(self.fit_channels(pixels))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """[1, latent, h, w] -> uint8 [360, 640, 3]."""
        return self.to_uint8(self.decoder(latent))
