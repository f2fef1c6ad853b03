"""The SD image VAE (spec 6.5). Images are `(n, 3, H, W)` in [−1, 1], latents `(n, 4, h, w)` unscaled."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VAEConfig
from .layers import ResnetBlock, Upsample

VAE_EPS = 1e-6


class VAEAttention(nn.Module):
    """One head over all positions, GroupNorm before, residual around; every projection has a bias."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, dim, eps=VAE_EPS)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "n c h w -> n (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return rearrange(self.to_out[0](y), "n (h w) c -> n c h w", h=x.shape[2]) + x


class VAEMid(nn.Module):
    """ResNet, attention, ResNet."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([VAEAttention(dim, groups)])
        self.resnets = nn.ModuleList([ResnetBlock(dim, dim, 0, groups, VAE_EPS) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class PaddedDownsample(nn.Module):
    """One row of zeros at the bottom and one column on the right, then a 3×3 convolution with stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VAELevel(nn.Module):
    """ResNets of one resolution and what changes the size behind them."""

    def __init__(self, ins: int, dim: int, layers: int, groups: int, scale: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(ins if j == 0 else dim, dim, 0, groups, VAE_EPS) for j in range(layers)
        )
        if scale == "down":
            self.downsamplers = nn.ModuleList([PaddedDownsample(dim)])
        elif scale == "up":
            self.upsamplers = nn.ModuleList([Upsample(dim)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for name in ("downsamplers", "upsamplers"):
            if hasattr(self, name):
                x = getattr(self, name)[0](x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            VAELevel(
                widths[max(i - 1, 0)], dim, config.layers_per_block, groups, "down" if i < len(widths) - 1 else None
            )
            for i, dim in enumerate(widths)
        )
        self.mid_block = VAEMid(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=VAE_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            VAELevel(
                widths[max(i - 1, 0)], dim, config.layers_per_block + 1, groups, "up" if i < len(widths) - 1 else None
            )
            for i, dim in enumerate(widths)
        )
        self.mid_block = VAEMid(widths[0], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=VAE_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Encoder to the mean of the posterior, and decoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        z = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def encode_mean(self, image: Tensor) -> Tensor:
        """(n, 3, H, W) -> mean (n, 4, h, w); nothing is sampled."""
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """(n, 4, h, w) -> (n, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(latent))


def reference_latent(vae: VAE, image: Tensor) -> Tensor:
    """Scaled latent of the reference picture: (1, 3, H, W) in [−1, 1] -> (1, 4, h, w) (spec 6.4)."""
    return vae.encode_mean(image) * vae.config.scaling_factor


def decode_video(vae: VAE, latents: Tensor) -> Tensor:
    """(1, 4, L, h, w) -> (1, 3, L, H, W) float32 in [0, 1], each frame on its own; NaN survives the clamp."""
    frames = rearrange(latents / vae.config.scaling_factor, "b c f h w -> (b f) c h w")
    video = torch.cat([vae.decode(frame[None]) for frame in frames])
    video = rearrange(video, "(b f) c h w -> b c f h w", b=latents.shape[0])
    return (video / 2 + 0.5).clamp(0, 1).float()
