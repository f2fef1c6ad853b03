"""Flow and residual interpolators: one network call for all pairs, one blend for all frames (spec 5.1, 5.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp import warping
from ported.interp.warping import fill_gaps, find_gaps


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution with padding."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class ConvBlock(nn.Module):
    """Two convolutions with SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(inputs, outputs, stride), nn.SiLU(), conv(outputs, outputs), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class FlowNet(nn.Module):
    """Encoder at two scales, decoder at the fine one."""

    def __init__(self, inputs: int, base: int, outputs: int) -> None:
        super().__init__()
        self.enc1, self.enc2 = ConvBlock(inputs, base), ConvBlock(base, 2 * base, 2)
        self.enc3, self.dec1 = ConvBlock(2 * base, 2 * base), ConvBlock(3 * base, base)
        self.out = conv(base, outputs)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enc1(x)
        deep = F.interpolate(self.enc3(self.enc2(skip)), size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.dec1(torch.cat((deep, skip), dim=1)))


class ResidualBlock(nn.Module):
    """Two convolutions around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.conv2(F.silu(self.conv1(x))))


class ResidualNet(nn.Module):
    """Projection, blocks, projection."""

    def __init__(self, inputs: int, channels: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.in_proj = conv(inputs, channels)
        self.blocks = nn.ModuleList([ResidualBlock(channels) for _ in range(blocks)])
        self.out_proj = conv(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.in_proj(x)
        for block in self.blocks:
            h = block(h)
        return self.out_proj(h)


class Flows(NamedTuple):
    """Predictions for pairs: flows in pixels `(b, 2, h, w)`, masks and uncertainty `(b, 1, h, w)`."""

    flow01: Tensor
    flow10: Tensor
    mask_a: Tensor
    mask_b: Tensor
    uncertainty: Tensor


def planes(like: Tensor, *values: Tensor | None) -> list[Tensor]:
    """One constant channel for every number a sample `(b,)`; None is left out."""
    size = (len(like), 1, *like.shape[-2:])
    return [v.to(like.dtype).reshape(-1, 1, 1, 1).expand(size) for v in values if v is not None]


def cost_volume(z0: Tensor, z1: Tensor, radius: int, downscale: int, normalise: bool = True) -> Tensor:
    """Products with all shifts inside the radius, from one unfold: `(b, c, h, w)` -> `(b, (2r+1)², h, w)`."""
    full = z0.shape[-2:]
    if downscale > 1:
        z0, z1 = F.avg_pool2d(z0, downscale), F.avg_pool2d(z1, downscale)
    if normalise:
        z0, z1 = F.normalize(z0, dim=1, eps=1e-6), F.normalize(z1, dim=1, eps=1e-6)
    b, c, h, w = z0.shape
    side = 2 * radius + 1
    around = F.pad(z1, (radius, radius, radius, radius), mode="replicate").unfold(2, h, 1).unfold(3, w, 1)
    volume = (z0[:, :, None, None] * around).sum(dim=1) / c**0.5
    return F.interpolate(volume.reshape(b, side * side, h, w), size=full, mode="bilinear", align_corners=False)


class LatentFlowInterpolator(nn.Module):
    """Warp and blend by predicted flow. `alpha_twice`: `interpolate` scales the flow before the blend does."""

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 32,
        max_flow: float = 20.0,
        residual_blocks: int = 2,
        residual_channels: int | None = None,
        time_mask: bool = False,
        gap_cond: bool = False,
        cost_volume: bool = False,
        cv_radius: int = 2,
        cv_downscale: int = 2,
        cv_norm: bool = True,
        alpha_twice: bool = False,
    ) -> None:
        super().__init__()
        self.max_flow, self.time_mask, self.gap_cond, self.alpha_twice = max_flow, time_mask, gap_cond, alpha_twice
        self.volume = (cv_radius, cv_downscale, cv_norm) if cost_volume else None
        inputs = 2 * in_channels + gap_cond + cost_volume * (2 * cv_radius + 1) ** 2
        self.net = FlowNet(inputs, base_channels, 6 + time_mask)
        self.residual = (
            ResidualNet(
                3 * in_channels + 1 + gap_cond, residual_channels or base_channels, in_channels, residual_blocks
            )
            if residual_blocks > 0
            else None
        )

    def predict(self, z0: Tensor, z1: Tensor, gap: Tensor) -> Flows:
        """Everything that does not depend on α, for pairs `(b, c, h, w)` and their shares of the clip `(b,)`."""
        parts = [z0, z1, *planes(z0, gap if self.gap_cond else None)]
        if self.volume is not None:
            parts.append(cost_volume(z0, z1, *self.volume))
        flow01, flow10, rest = self.net(torch.cat(parts, dim=1)).split((2, 2, 2 + self.time_mask), dim=1)
        if self.time_mask:
            mask_a, mask_b, doubt = rest.chunk(3, dim=1)
        else:
            mask_a, doubt = rest.chunk(2, dim=1)
            mask_a = mask_a.sigmoid()
            mask_b = torch.zeros_like(mask_a)
        return Flows(flow01.tanh() * self.max_flow, flow10.tanh() * self.max_flow, mask_a, mask_b, doubt.sigmoid())

    def blend(self, z0: Tensor, z1: Tensor, flows: Flows, alpha: Tensor, gap: Tensor) -> Tensor:
        """Frames at α `(b,)`."""
        a = alpha.to(z0.dtype).reshape(-1, 1, 1, 1)
        mask = (flows.mask_a + flows.mask_b * (2 * a - 1)).sigmoid() if self.time_mask else flows.mask_a
        z = mask * warping.warp(z0, -a * flows.flow01) + (1 - mask) * warping.warp(z1, -(1 - a) * flows.flow10)
        if self.residual is None:
            return z
        return z + self.residual(torch.cat([z, z0, z1, *planes(z0, alpha, gap if self.gap_cond else None)], dim=1))

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor, gap: Tensor) -> tuple[Tensor, Flows]:
        """One frame of every pair, and the predictions."""
        flows = self.predict(z0, z1, gap)
        return self.blend(z0, z1, flows, alpha, gap), flows

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill clips `(b, t, c, h, w)` between keyframes `(b, K)`; confidence `(b, t, h, w)`."""
        gaps = find_gaps(idx)

        def make() -> tuple[Tensor, Tensor]:
            z0, z1 = latents[gaps.sample, gaps.start], latents[gaps.sample, gaps.end]
            share = (gaps.gap().float() / max(latents.shape[1] - 1, 1)).to(latents.dtype)
            flows = self.predict_pairs(z0, z1, share)
            return self.blend_frames(z0, z1, flows, gaps.alpha(latents), share, gaps.pair)

        return fill_gaps(latents, idx, gaps, make)

    def predict_pairs(self, z0: Tensor, z1: Tensor, gap: Tensor) -> Flows:
        """Predictions for all pairs of a batch of clips."""
        return self.predict(z0, z1, gap)

    def blend_frames(
        self, z0: Tensor, z1: Tensor, flows: Flows, alpha: Tensor, gap: Tensor, pair: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All frames at once: α `(m,)` of pair number `(m,)`; frames `(m, c, h, w)`, confidence `(m, h, w)`."""
        flows = Flows(*(part[pair] for part in flows))
        if self.alpha_twice:
            a = alpha.view(-1, 1, 1, 1)
            flows = flows._replace(flow01=a * flows.flow01, flow10=(1 - a) * flows.flow10)
        made = self.blend(z0[pair], z1[pair], flows, alpha, gap[pair])
        return made, (1 - flows.uncertainty[:, 0]).clamp(0, 1)


class LatentLerpResidualInterpolator(nn.Module):
    """Linear blend and a residual that vanishes at both ends."""

    def __init__(
        self, in_channels: int, base_channels: int = 32, residual_blocks: int = 2, gap_cond: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.gap_cond = in_channels, gap_cond
        self.residual = ResidualNet(3 * in_channels + 1 + gap_cond, base_channels, in_channels + 1, residual_blocks)

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Frames at α `(b,)` and their uncertainty."""
        a = alpha.to(z0.dtype).reshape(-1, 1, 1, 1)
        base = (1 - a) * z0 + a * z1
        parts = [base, z0, z1, *planes(z0, alpha, gap if self.gap_cond else None)]
        change, doubt = self.residual(torch.cat(parts, dim=1)).split((self.channels, 1), dim=1)
        return base + a * (1 - a) * change, doubt.sigmoid()

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill clips between keyframes."""
        gaps = find_gaps(idx)

        def make() -> tuple[Tensor, Tensor]:
            z0, z1 = latents[gaps.sample, gaps.start], latents[gaps.sample, gaps.end]
            share = (gaps.gap().float() / max(latents.shape[1] - 1, 1)).to(latents.dtype)
            pair = gaps.pair
            frames, doubt = self.interpolate_pair(z0[pair], z1[pair], gaps.alpha(latents), share[pair])
            return frames, 1 - doubt[:, 0]

        return fill_gaps(latents, idx, gaps, make)
