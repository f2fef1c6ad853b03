"""The networks of the port (spec 3, 6.1), with the official state-dict keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.upsampling import Upsample2D
from einops import rearrange
from torch import Tensor, nn

from ported.echomimic.blocks import DenoiserBlock, FrameTransformer, Motion, ReferenceBlock, resnet
from ported.echomimic.settings import Config

Banks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """What every layer of one pass is given. `sink` collects banks (reference network), `banks` are read (denoiser)."""

    temb: Tensor
    frames: int = 1
    audio: Tensor | None = None
    banks: Banks | None = None
    guided: bool = False
    sink: dict[str, list[Tensor]] | None = None


class Level(nn.Module):
    """Layers of one resolution."""

    def __init__(self, config: Config, path: str, ins: list[int], dim: int, attends: bool, denoiser: bool) -> None:
        super().__init__()
        heads, groups, time_dim = (
            config["attention_head_dim"],
            config["norm_num_groups"],
            4 * config["block_out_channels"][0],
        )
        layers = 1 if path == "mid_block" else len(ins)

        def block(j: int) -> nn.Module:
            place = f"{path}.attentions.{j}.transformer_blocks.0"
            if denoiser:
                return DenoiserBlock(dim, heads, config["cross_attention_dim"], place)
            return ReferenceBlock(dim, heads, place)

        self.attentions = (
            nn.ModuleList(FrameTransformer(dim, groups, block(j)) for j in range(layers)) if attends else None
        )
        self.resnets = nn.ModuleList(resnet(width, dim, time_dim, groups) for width in ins)
        self.motion_modules = (
            nn.ModuleList(Motion(dim, config["motion_heads"], config["max_len"]) for _ in range(layers))
            if denoiser
            else None
        )

    def after_resnet(self, j: int, rows: Tensor, given: Pass) -> Tensor:
        if self.attentions is not None:
            transformer = self.attentions[j]
            if given.sink is not None:
                rows = transformer(rows, sink=given.sink)
            else:
                bank = (given.banks or {}).get(transformer.transformer_blocks[0].path)
                rows = transformer(rows, given.audio, bank, given.guided)
        if self.motion_modules is not None:
            rows = self.motion_modules[j](rows, given.frames)
        return rows


class Down(Level):
    def __init__(self, config: Config, i: int, denoiser: bool) -> None:
        widths = config["block_out_channels"]
        dim, last = widths[i], i == len(widths) - 1
        ins = [widths[max(i - 1, 0)], *[dim] * (config["layers_per_block"] - 1)]
        super().__init__(config, f"down_blocks.{i}", ins, dim, not last, denoiser)
        self.downsamplers = None if last else nn.ModuleList([Downsample2D(dim, use_conv=True, padding=1, name="op")])

    def forward(self, rows: Tensor, given: Pass, skips: list[Tensor]) -> Tensor:
        for j, block in enumerate(self.resnets):
            rows = self.after_resnet(j, block(rows, given.temb), given)
            skips.append(rows)
        if self.downsamplers is not None:
            rows = self.downsamplers[0](rows)
            skips.append(rows)
        return rows


class Mid(Level):
    def __init__(self, config: Config, denoiser: bool) -> None:
        dim = config["block_out_channels"][-1]
        super().__init__(config, "mid_block", [dim, dim], dim, True, denoiser)

    def forward(self, rows: Tensor, given: Pass) -> Tensor:
        rows = self.after_resnet(0, self.resnets[0](rows, given.temb), given)
        return self.resnets[1](rows, given.temb)


class Up(Level):
    def __init__(self, config: Config, i: int, denoiser: bool) -> None:
        widths, layers = tuple(config["block_out_channels"])[::-1], config["layers_per_block"] + 1
        dim, last = widths[i], i == len(widths) - 1
        below, above = widths[max(i - 1, 0)], widths[min(i + 1, len(widths) - 1)]
        ins = [(below if j == 0 else dim) + (above if j == layers - 1 else dim) for j in range(layers)]
        super().__init__(config, f"up_blocks.{i}", ins, dim, i > 0, denoiser)
        self.upsamplers = None if last else nn.ModuleList([Upsample2D(dim, use_conv=True)])

    def forward(self, rows: Tensor, given: Pass, skips: list[Tensor], size: tuple[int, int] | None) -> Tensor:
        for j, (block, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            rows = self.after_resnet(j, block(torch.cat((rows, skip), dim=1), given.temb), given)
        return rows if self.upsamplers is None else self.upsamplers[0](rows, size)


class Skeleton(nn.Module):
    """Down, mid and up over rows."""

    def __init__(self, config: Config, denoiser: bool) -> None:
        super().__init__()
        self.settings = dict(config)
        widths = config["block_out_channels"]
        levels = range(len(widths))
        self.conv_in = nn.Conv2d(4, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList(Down(config, i, denoiser) for i in levels)
        self.up_blocks = nn.ModuleList(Up(config, i, denoiser) for i in levels)
        self.mid_block = Mid(config, denoiser)

    def embed(self, timestep: Tensor, batch: int) -> Tensor:
        times = timestep.reshape(-1).expand(batch)
        sinusoid = get_timestep_embedding(
            times, self.settings["block_out_channels"][0], flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.time_embedding(sinusoid.to(self.conv_in.weight.dtype))

    def run(self, rows: Tensor, given: Pass) -> Tensor:
        factor = 2 ** (len(self.down_blocks) - 1)
        forced = any(side % factor for side in rows.shape[-2:])
        skips = [rows]
        for level in self.down_blocks:
            rows = level(rows, given, skips)
        rows = self.mid_block(rows, given)
        for level in self.up_blocks:
            count = len(level.resnets)
            mine, skips = skips[-count:], skips[:-count]
            rows = level(rows, given, mine, tuple(skips[-1].shape[-2:]) if forced and skips else None)
        return rows

    def widths_in_order(self) -> list[tuple[str, int]]:
        """Path and width of every transformer block, in the order of registration."""
        return [
            (module.path, module.norm1.normalized_shape[0])
            for module in self.modules()
            if isinstance(module, (ReferenceBlock, DenoiserBlock))
        ]


class ReferenceNet(Skeleton):
    """Runs once on the reference latent and returns its banks."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, denoiser=False)

    def forward(self, latent: Tensor, timestep: Tensor, sink: dict[str, list[Tensor]] | None = None) -> Banks:
        """(1, 4, h, w) -> bank (1, s, c) by block. `sink`: lists to append to."""
        sink = {} if sink is None else sink
        self.run(self.conv_in(latent), Pass(self.embed(timestep, len(latent)), sink=sink))
        return {path: kept[0] if len(kept) == 1 else torch.cat(kept, dim=1) for path, kept in sink.items()}


class Denoiser(Skeleton):
    """Velocity of a window of frames."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, denoiser=True)
        dim = config["block_out_channels"][0]
        self.conv_norm_out = nn.GroupNorm(config["norm_num_groups"], dim, eps=1e-5)
        self.conv_out = nn.Conv2d(dim, 4, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio: Tensor,
        pose_features: Tensor,
        banks: Banks | None = None,
        guided: bool = False,
    ) -> Tensor:
        """(b, 4, f, h, w), (), (b, f, m, d), (b, c0, f, h, w) -> (b, 4, f, h, w)."""
        batch, frames = sample.shape[0], sample.shape[2]
        given = Pass(self.embed(timestep, batch), frames, audio.flatten(0, 1), banks, guided)
        rows = self.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
        rows = rows + rearrange(pose_features, "b c f h w -> (b f) c h w")
        rows = self.conv_out(F.silu(self.conv_norm_out(self.run(rows, given))))
        return rearrange(rows, "(b f) c h w -> b c f h w", b=batch)


class PoseEncoder(nn.Module):
    """Pose maps (L, 3, H, W) in [0, 1] -> features (L, c0, H/8, W/8)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = tuple(config["block_out_channels"])
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for i, width in enumerate(widths[:-1]):
            self.blocks += [
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, widths[i + 1], 3, padding=1, stride=2),
            ]
        self.conv_out = nn.Conv2d(widths[-1], config["conditioning_embedding_channels"], 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        features = F.silu(self.conv_in(maps))
        for conv in self.blocks:
            features = F.silu(conv(features))
        return self.conv_out(features)
