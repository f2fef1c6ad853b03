"""The two UNets on one skeleton (spec 3): the reference network writes banks, the denoising network reads them."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import UNetConfig
from .layers import (
    RESNET_EPS,
    Downsample,
    GroupNorm,
    InflatedConv,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    timestep_sinusoid,
)
from .motion import MotionModule
from .transformer import ReadBlock, SpatialTransformer, WriteBlock

Banks = Mapping[str, Tensor]


class Level(nn.Module):
    """Layers of one resolution: ResNet, spatial transformer where there is one, motion module where there is one."""

    def __init__(
        self, config: UNetConfig, path: str, ins: list[int], dim: int, attend: bool, layers: int, read: bool
    ) -> None:
        super().__init__()
        groups, heads = config.norm_num_groups, config.attention_head_dim
        inflated = config.use_inflated_groupnorm or not read
        if attend:
            self.attentions = nn.ModuleList(
                SpatialTransformer(
                    dim,
                    ReadBlock(dim, heads, config.cross_attention_dim) if read else WriteBlock(dim, heads),
                    groups,
                    f"{path}.attentions.{j}",
                )
                for j in range(layers)
            )
        self.resnets = nn.ModuleList(
            ResnetBlock(width, dim, config.time_dim, groups, inflated=inflated) for width in ins
        )
        if read and config.use_motion_module:
            self.motion_modules = nn.ModuleList(
                MotionModule(dim, config.motion_heads, config.max_len) for _ in range(layers)
            )

    def layer(self, j: int, x: Tensor, audio: Tensor | None, banks: Banks, cfg: bool) -> Tensor:
        """What follows the ResNet of layer j."""
        if hasattr(self, "attentions"):
            attention = self.attentions[j]
            x = attention(x) if audio is None else attention(x, audio, banks.get(attention.path), cfg)
        if hasattr(self, "motion_modules"):
            x = self.motion_modules[j](x)
        return x


class DownLevel(Level):
    def __init__(self, config: UNetConfig, i: int, read: bool) -> None:
        widths, layers = config.block_out_channels, config.layers_per_block
        dim, last = widths[i], i == config.levels - 1
        ins = [widths[max(i - 1, 0)]] + [dim] * (layers - 1)
        super().__init__(config, f"down_blocks.{i}", ins, dim, not last, layers, read)
        if not last:
            self.downsamplers = nn.ModuleList([Downsample(dim)])

    def forward(
        self, x: Tensor, temb: Tensor, audio: Tensor | None, banks: Banks, cfg: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the level's output and what the up path will need of it."""
        skips = []
        for j, resnet in enumerate(self.resnets):
            x = self.layer(j, resnet(x, temb), audio, banks, cfg)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidLevel(Level):
    def __init__(self, config: UNetConfig, read: bool) -> None:
        dim = config.block_out_channels[-1]
        super().__init__(config, "mid_block", [dim, dim], dim, True, 1, read)

    def forward(self, x: Tensor, temb: Tensor, audio: Tensor | None, banks: Banks, cfg: bool) -> Tensor:
        x = self.layer(0, self.resnets[0](x, temb), audio, banks, cfg)
        return self.resnets[1](x, temb)


class UpLevel(Level):
    def __init__(self, config: UNetConfig, i: int, read: bool) -> None:
        widths = config.block_out_channels[::-1]
        layers = config.layers_per_block + 1
        dim, first, last = widths[i], i == 0, i == config.levels - 1
        below, above = widths[max(i - 1, 0)], widths[min(i + 1, config.levels - 1)]
        ins = [(below if j == 0 else dim) + (above if j == layers - 1 else dim) for j in range(layers)]
        super().__init__(config, f"up_blocks.{i}", ins, dim, not first, layers, read)
        if not last:
            self.upsamplers = nn.ModuleList([Upsample(dim)])

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        temb: Tensor,
        audio: Tensor | None,
        banks: Banks,
        cfg: bool,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """`skips` in the order in which they were made: the last is taken first, behind the current channels."""
        for j, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            x = self.layer(j, resnet(torch.cat([x, skip], dim=1), temb), audio, banks, cfg)
        return self.upsamplers[0](x, size) if hasattr(self, "upsamplers") else x


class UNet(nn.Module):
    """The skeleton. The mid level is registered last, as upstream: the order in which banks are paired depends on it."""

    def __init__(self, config: UNetConfig, read: bool) -> None:
        super().__init__()
        self.config = config
        c0 = config.block_out_channels[0]
        self.conv_in = InflatedConv(config.in_channels, c0, 3, padding=1)
        self.time_embedding = TimeEmbedding(c0, config.time_dim)
        self.down_blocks = nn.ModuleList(DownLevel(config, i, read) for i in range(config.levels))
        self.up_blocks = nn.ModuleList(UpLevel(config, i, read) for i in range(config.levels))
        self.mid_block = MidLevel(config, read)

    def embed_time(self, timestep: Tensor, batch: int) -> Tensor:
        """Scalar or (b,) time steps -> (b, 4·c0); the sinusoid is float32, then in the model's dtype."""
        t = timestep.reshape(-1).expand(batch)
        sinusoid = timestep_sinusoid(t, self.config.block_out_channels[0])
        return self.time_embedding(sinusoid.to(self.conv_in.weight.dtype))

    def body(self, x: Tensor, temb: Tensor, audio: Tensor | None, banks: Banks, cfg: bool) -> Tensor:
        """Down, mid and up from the output of `conv_in`."""
        exact = any(size % (1 << (self.config.levels - 1)) for size in x.shape[-2:])
        skips = [x]
        for level in self.down_blocks:
            x, made = level(x, temb, audio, banks, cfg)
            skips += made
        x = self.mid_block(x, temb, audio, banks, cfg)
        for level in self.up_blocks:
            taken = skips[-len(level.resnets) :]
            del skips[-len(level.resnets) :]
            size = tuple(skips[-1].shape[-2:]) if exact and skips else None
            x = level(x, taken, temb, audio, banks, cfg, size)
        return x

    def transformer_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Every transformer block by path, in the order of registration (depth first)."""
        for path, module in self.named_modules():
            if isinstance(module, (WriteBlock, ReadBlock)):
                yield path, module


class ReferenceUNet(UNet):
    """The 2-D network: run once on the reference latent, only its banks matter; it has no output convolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, read=False)

    def forward(self, latent: Tensor, timestep: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(1, 4, h, w) -> the last level's output and the banks (1, s, c) by block, in the order of registration."""
        blocks = dict(self.transformer_blocks())
        temb = self.embed_time(timestep, latent.shape[0])
        x = self.body(self.conv_in(latent), temb, None, {}, False)
        banks = {path: block.bank.pop() for path, block in blocks.items()}
        return x, banks


class DenoisingUNet(UNet):
    """The 3-D network: latents of a window, audio, pose features and banks -> velocity (spec 3, 4.3)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, read=True)
        c0 = config.block_out_channels[0]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, c0, RESNET_EPS, config.use_inflated_groupnorm)
        self.conv_out = InflatedConv(c0, config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio: Tensor,
        pose_features: Tensor,
        banks: Banks | None = None,
        cfg: bool = False,
    ) -> Tensor:
        """(b, 4, f, h, w), (), (b, f, m, d), (b, c0, f, h, w) -> (b, 4, f, h, w)."""
        temb = self.embed_time(timestep, sample.shape[0])
        x = self.conv_in(sample) + pose_features
        x = self.body(x, temb, audio, banks or {}, cfg)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
