"""Interpolators that predict flow or a residual from two keyframes (spec 5.1, 5.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import warping
from .warping import Segment, fraction, hold_and_fill, nothing, segments_of


class ConvBlock(nn.Module):
    """Conv3×3 – SiLU – Conv3×3 – SiLU; the first convolution may halve the size."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class FlowNet(nn.Module):
    """Two-scale network over both keyframes: `(b, c_in, h, w)` -> `(b, outputs, h, w)`."""

    def __init__(self, inputs: int, base: int, outputs: int) -> None:
        super().__init__()
        self.enc1 = ConvBlock(inputs, base)
        self.enc2 = ConvBlock(base, 2 * base, stride=2)
        self.enc3 = ConvBlock(2 * base, 2 * base)
        self.dec1 = ConvBlock(3 * base, base)
        self.out = nn.Conv2d(base, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enc1(x)
        coarse = self.enc3(self.enc2(fine))
        up = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.dec1(torch.cat([up, fine], dim=1)))


class ResidualBlock(nn.Module):
    """`SiLU(conv2(SiLU(conv1 x)) + x)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv2(F.silu(self.conv1(x))) + x)


class ResidualNet(nn.Module):
    """Projection, residual blocks, projection: `(b, c_in, h, w)` -> `(b, outputs, h, w)`."""

    def __init__(self, inputs: int, channels: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(inputs, channels, 3, 1, 1)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.out_proj = nn.Conv2d(channels, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        for block in self.blocks:
            x = block(x)
        return self.out_proj(x)


class Flows(NamedTuple):
    """What the predictor says of a pair of keyframes."""

    flow01: Tensor  # (b, 2, h, w), pixels
    flow10: Tensor
    mask_a: Tensor  # (b, 1, h, w)
    mask_b: Tensor
    uncertainty: Tensor


def plane(value: Tensor, like: Tensor) -> Tensor:
    """One channel that holds a number a sample: `(b,)` -> `(b, 1, h, w)`."""
    return value.to(like.dtype).view(-1, 1, 1, 1).expand(len(like), 1, *like.shape[-2:])


def cost_volume(z0: Tensor, z1: Tensor, radius: int, downscale: int, normalise: bool = True) -> Tensor:
    """Correlate z0 with shifted z1 at every displacement, dx fastest: `(b, c, h, w)` -> `(b, (2r+1)², h, w)`."""
    size = z0.shape[-2:]
    if downscale > 1:
        z0, z1 = F.avg_pool2d(z0, downscale), F.avg_pool2d(z1, downscale)
    if normalise:
        z0, z1 = F.normalize(z0, dim=1, eps=1e-6), F.normalize(z1, dim=1, eps=1e-6)
    c, h, w = z0.shape[1:]
    padded = F.pad(z1, (radius,) * 4, mode="replicate")
    planes = []
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            planes.append((z0 * padded[:, :, dy : dy + h, dx : dx + w]).sum(dim=1) / c**0.5)
    return F.interpolate(torch.stack(planes, dim=1), size=size, mode="bilinear", align_corners=False)


class LatentFlowInterpolator(nn.Module):
    """Warp both keyframes by predicted flow and blend them, with an optional residual.

    `alpha_twice` is what upstream's `interpolate` does: the flow is scaled by α before a blend that scales it again.
    """

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
        extra = int(gap_cond) + ((2 * cv_radius + 1) ** 2 if cost_volume else 0)
        self.net = FlowNet(2 * in_channels + extra, base_channels, 7 if time_mask else 6)
        self.residual = None
        if residual_blocks > 0:
            inputs = 3 * in_channels + 1 + int(gap_cond)
            self.residual = ResidualNet(inputs, residual_channels or base_channels, in_channels, residual_blocks)

    def predict(self, z0: Tensor, z1: Tensor, gap: Tensor) -> Flows:
        """Flows, masks and uncertainty of pairs `(b, c, h, w)`; gap `(b,)` as a share of the clip."""
        parts = [z0, z1]
        if self.gap_cond:
            parts.append(plane(gap, z0))
        if self.volume is not None:
            parts.append(cost_volume(z0, z1, *self.volume))
        out = self.net(torch.cat(parts, dim=1))
        flow01, flow10 = out[:, 0:2].tanh() * self.max_flow, out[:, 2:4].tanh() * self.max_flow
        if self.time_mask:
            return Flows(flow01, flow10, out[:, 4:5], out[:, 5:6], out[:, 6:7].sigmoid())
        mask = out[:, 4:5].sigmoid()
        return Flows(flow01, flow10, mask, torch.zeros_like(mask), out[:, 5:6].sigmoid())

    def blend(self, z0: Tensor, z1: Tensor, flows: Flows, alpha: Tensor, gap: Tensor) -> Tensor:
        """The frame at α `(b,)` between pairs: `(b, c, h, w)`."""
        a = alpha.to(z0.dtype).view(-1, 1, 1, 1)
        mask = torch.sigmoid(flows.mask_a + flows.mask_b * (2 * a - 1)) if self.time_mask else flows.mask_a
        left, right = warping.warp(z0, -a * flows.flow01), warping.warp(z1, -(1 - a) * flows.flow10)
        z = mask * left + (1 - mask) * right
        if self.residual is None:
            return z
        parts = [z, z0, z1, plane(alpha, z0), *([plane(gap, z0)] if self.gap_cond else [])]
        return z + self.residual(torch.cat(parts, dim=1))

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor, gap: Tensor) -> tuple[Tensor, Flows]:
        """The frame at α between z0 and z1 `(b, c, h, w)`, alpha and gap `(b,)`, and what was predicted."""
        flows = self.predict(z0, z1, gap)
        return self.blend(z0, z1, flows, alpha, gap), flows

    def predict_pairs(self, z0: Tensor, z1: Tensor, gap: Tensor) -> Flows:
        """Predict for every pair `(pairs, c, h, w)`, one after the other."""
        found = [self.predict(*(x[None] for x in pair)) for pair in zip(z0, z1, gap, strict=True)]
        return Flows(*(torch.cat(part) for part in zip(*found, strict=True)))

    def blend_frames(
        self, z0: Tensor, z1: Tensor, flows: Flows, alpha: Tensor, gap: Tensor, pair: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Frames at α `(m,)` of the pairs numbered `pair` `(m,)`: `(m, c, h, w)` and confidence `(m, h, w)`."""
        frames, trust = [], []
        for a, n in zip(alpha, pair.tolist(), strict=True):
            of_pair = Flows(*(part[n, None] for part in flows))
            if self.alpha_twice:
                of_pair = of_pair._replace(flow01=a * of_pair.flow01, flow10=(1 - a) * of_pair.flow10)
            frames.append(self.blend(z0[n, None], z1[n, None], of_pair, a[None], gap[n, None]))
            trust.append((1 - of_pair.uncertainty[:, 0]).clamp(0, 1))
        return torch.cat(frames), torch.cat(trust)

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill a clip `(b, t, c, h, w)` between keyframes `(b, K)`; returns it and the confidence `(b, t, h, w)`."""
        segments = segments_of(idx)
        if not segments:
            return hold_and_fill(latents, idx, nothing)
        span = max(latents.shape[1] - 1, 1)
        z0 = torch.stack([latents[s.sample, s.start] for s in segments])
        z1 = torch.stack([latents[s.sample, s.end] for s in segments])
        gap = latents.new_tensor([s.gap / span for s in segments])
        flows = self.predict_pairs(z0, z1, gap)
        places = [(n, t) for n, segment in enumerate(segments) for t in segment.inner]
        alpha = torch.stack([fraction(segments[n], t, latents) for n, t in places])
        frames, trust = self.blend_frames(z0, z1, flows, alpha, gap, torch.tensor([n for n, _ in places]))
        at = {place: m for m, place in enumerate(places)}
        return hold_and_fill(latents, idx, lambda n, segment, t: (frames[at[n, t]], trust[at[n, t]]))


class LatentLerpResidualInterpolator(nn.Module):
    """Linear blend plus `α(1−α)` times a residual: exact at both ends."""

    def __init__(
        self, in_channels: int, base_channels: int = 32, residual_blocks: int = 2, gap_cond: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.gap_cond = in_channels, gap_cond
        self.residual = ResidualNet(
            3 * in_channels + 1 + int(gap_cond), base_channels, in_channels + 1, residual_blocks
        )

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """The frame at α `(b,)` and its uncertainty `(b, 1, h, w)`."""
        a = alpha.to(z0.dtype).view(-1, 1, 1, 1)
        base = (1 - a) * z0 + a * z1
        parts = [base, z0, z1, plane(alpha, z0), *([plane(gap, z0)] if self.gap_cond else [])]
        out = self.residual(torch.cat(parts, dim=1))
        c = self.channels
        return base + a * (1 - a) * out[:, :c], out[:, c : c + 1].sigmoid()

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill a clip `(b, t, c, h, w)` between keyframes `(b, K)`; returns it and the confidence `(b, t, h, w)`."""
        span = max(latents.shape[1] - 1, 1)

        def fill(number: int, segment: Segment, t: int) -> tuple[Tensor, Tensor]:
            z0, z1 = latents[segment.sample, segment.start, None], latents[segment.sample, segment.end, None]
            gap = latents.new_tensor([segment.gap / span])
            frame, uncertainty = self.interpolate_pair(z0, z1, fraction(segment, t, latents)[None], gap)
            return frame[0], 1 - uncertainty[0, 0]

        return hold_and_fill(latents, idx, fill)
