"""Elementary layers of both UNets (spec 2). A tensor is an image `(b, c, h, w)` or a clip `(b, c, f, h, w)`.

Precision: everything in the dtype of the weights; only the sinusoid of the time step is float32.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

RESNET_EPS = 1e-5


def to_rows(x: Tensor) -> Tensor:
    """Clip -> rows `(b f) c h w`, frame fastest; an image stays as it is.

    Contiguous: torch's GroupNorm for channels-last strides loses four digits where a group has few elements.
    """
    return rearrange(x, "b c f h w -> (b f) c h w").contiguous() if x.dim() == 5 else x


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Rows -> clip with the batch of `like`; an image stays as it is."""
    return rearrange(rows, "(b f) c h w -> b c f h w", b=like.shape[0]) if like.dim() == 5 else rows


class InflatedConv(nn.Conv2d):
    """An ordinary 2-D convolution on every frame; no kernel in time."""

    def forward(self, input: Tensor) -> Tensor:
        return from_rows(super().forward(to_rows(input)), input)


class GroupNorm(nn.GroupNorm):
    """GroupNorm per frame (`inflated`), or, on a clip, with statistics over all frames (spec 2)."""

    def __init__(self, groups: int, channels: int, eps: float, inflated: bool = True) -> None:
        super().__init__(groups, channels, eps=eps)
        self.inflated = inflated

    def forward(self, input: Tensor) -> Tensor:
        return from_rows(super().forward(to_rows(input)), input) if self.inflated else super().forward(input)


def timestep_sinusoid(t: Tensor, dim: int) -> Tensor:
    """`[cos(t·f_k), sin(t·f_k)]`, `f_k = 10000^(−k/half)`: (b,) -> (b, dim), float32, cosine first."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear: (b, c0) -> (b, 4·c0)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, conv, beside a shortcut; `time_dim` 0: no time embedding (VAE)."""

    def __init__(
        self, in_dim: int, out_dim: int, time_dim: int, groups: int, eps: float = RESNET_EPS, inflated: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_dim, eps, inflated)
        self.conv1 = InflatedConv(in_dim, out_dim, 3, padding=1)
        if time_dim:
            self.time_emb_proj = nn.Linear(time_dim, out_dim)
        self.norm2 = GroupNorm(groups, out_dim, eps, inflated)
        self.conv2 = InflatedConv(out_dim, out_dim, 3, padding=1)
        if in_dim != out_dim:
            self.conv_shortcut = InflatedConv(in_dim, out_dim, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            shift = self.time_emb_proj(F.silu(temb))
            y = y + shift.view(*shift.shape, *(1,) * (y.dim() - 2))  # the same for every frame and position
        y = self.conv2(F.silu(self.norm2(y)))
        short = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return short + y


class Downsample(nn.Module):
    """3×3 convolution with stride 2 and padding 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = InflatedConv(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, or to `size` (h, w), then a 3×3 convolution; time stays."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = InflatedConv(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        rows = to_rows(x)
        rows = F.interpolate(rows, size=size) if size else F.interpolate(rows, scale_factor=2.0)
        return self.conv(from_rows(rows, x))


class Attention(nn.Module):
    """softmax(q kᵀ / √d) v with d = c / heads; no mask. q from `x` (n, s, c), k and v from `context` (n, t, c')."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out[0](self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads apart, attention, heads together: (n, s, c), (n, t, c), (n, t, c) -> (n, s, c)."""
        q, k, v = (rearrange(part, "n s (h d) -> n h s d", h=self.heads) for part in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "n h s d -> n s (h d)")


class GEGLU(nn.Module):
    """`a · gelu(g)` of one projection `[a, g]`, exact GELU: (..., c) -> (..., 4c)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        a, g = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(g)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back; the key of the second Linear is `net.2` (1 was dropout)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))
