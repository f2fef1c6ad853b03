"""Layers of the causal VAE (spec A10). All tensors are `(b, c, t, h, w)`, float32; keys are the official ones."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .vae_cache import REPEAT, FeatureCache, recent_frames

ResampleMode = Literal["downsample2d", "downsample3d", "upsample2d", "upsample3d"]


class CausalConv3d(nn.Conv3d):
    """Convolution that sees no later frame: all the time padding, `2·p_t`, is in front.

    With `past` frames they are put in front and replace as many zero frames.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
    ) -> None:
        super().__init__(in_dim, out_dim, kernel, stride=stride, padding=padding)
        pt, ph, pw = self.padding
        self.time_padding, self.space_padding = 2 * pt, (pw, pw, ph, ph)
        self.padding = (0, 0, 0)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        front = self.time_padding
        if past is not None and front > 0:
            x = torch.cat([past.to(x.device), x], dim=2)
            front -= past.shape[2]
        return super().forward(F.pad(x, (*self.space_padding, front, 0)))


def cached_conv(conv: CausalConv3d, x: Tensor, cache: FeatureCache) -> Tensor:
    """Run a convolution behind the frames that the previous chunk left, and remember the last frames of `x`."""
    past = cache.read()
    out = conv(x, past)
    cache.store(recent_frames(x, past))
    return out


class RMSNorm(nn.Module):
    """`x / max(‖x‖₂ over channels, 1e-12) · sqrt(c) · gamma` at every position; gamma is `(c, 1, 1[, 1])`."""

    def __init__(self, dim: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU and causal 3³ convolution beside a shortcut: c_in -> c_out, same t, h, w."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_dim),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, 3, padding=1),
            RMSNorm(out_dim),
            nn.SiLU(),
            nn.Dropout(0.0),
            CausalConv3d(out_dim, out_dim, 3, padding=1),
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        short = self.shortcut(x)
        for layer in self.residual:
            x = cached_conv(layer, x, cache) if isinstance(layer, CausalConv3d) else layer(x)
        return x + short


class AttentionBlock(nn.Module):
    """Attention of one head over the h·w positions of each frame, beside the input; it keeps nothing between chunks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n c h w -> n 1 (h w) c").contiguous().chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)  # scale c^-0.5
        y = self.proj(y.squeeze(1).transpose(1, 2).reshape(frames.shape))  # as upstream: strides pick the kernel
        return rearrange(y, "(b t) c h w -> b c t h w", b=b) + x


class NearestUpsample(nn.Upsample):
    """Nearest-exact doubling in float32, cast back: `(n, c, h, w)` -> `(n, c, 2h, 2w)`."""

    def __init__(self) -> None:
        super().__init__(scale_factor=(2.0, 2.0), mode="nearest-exact")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Resample(nn.Module):
    """Halve or double the image, in the 3d modes the frame rate too.

    Down: the image first, then the time; up: the time first, then the image, with c -> c/2.
    """

    def __init__(self, dim: int, mode: ResampleMode) -> None:
        super().__init__()
        self.mode = mode
        if mode.startswith("up"):
            self.resample = nn.Sequential(NearestUpsample(), nn.Conv2d(dim, dim // 2, 3, padding=1))
        else:  # zeros on the right and at the bottom only
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if mode == "upsample3d":
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1), padding=(1, 0, 0))
        elif mode == "downsample3d":
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:
        if self.mode == "upsample3d":
            x = self.double_time(x, cache)
        x = self.resample_frames(x)
        if self.mode == "downsample3d":
            x = self.halve_time(x, cache)
        return x

    def resample_frames(self, x: Tensor) -> Tensor:
        """Apply the image part to every frame."""
        frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])

    def halve_time(self, x: Tensor, cache: FeatureCache) -> Tensor:
        """First chunk: keep it as it is. Later: 4 -> 2, 2 -> 1, with the last frame of the previous chunk in front."""
        past = cache.read()
        cache.store(x[:, :, -1:].clone() if past is not None else x.clone())
        if past is None:
            return x
        return self.time_conv(torch.cat([past[:, :, -1:], x], dim=2))

    def double_time(self, x: Tensor, cache: FeatureCache) -> Tensor:
        """First chunk: leave the marker, do not double. Second: the first frame is not seen, zeros stand for it."""
        past = cache.read()
        if past is None:
            cache.store(REPEAT)
            return x
        if isinstance(past, str):
            cache.store(recent_frames(x, torch.zeros_like(x[:, :, :1])))
            doubled = self.time_conv(x)
        else:
            cache.store(recent_frames(x, past))
            doubled = self.time_conv(x, past)
        return self.interleave(doubled)

    def interleave(self, x: Tensor) -> Tensor:
        """Channel group 0 becomes frame 2k, group 1 frame 2k+1: `(b, 2c, t, h, w)` -> `(b, c, 2t, h, w)`."""
        return rearrange(x, "b (two c) t h w -> b c (t two) h w", two=2)
