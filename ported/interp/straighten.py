"""Latent straighteners (spec 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ported.interp.film import FilmTransformer, grid_features, sinusoid
from ported.interp.patches import patchify, unpatchify


class ConvMap(nn.Module):
    """A small convolutional network, residual on request."""

    def __init__(self, channels: int, hidden: int, blocks: int, kernel_size: int, use_residual: bool) -> None:
        super().__init__()
        self.use_residual = use_residual
        self.net = nn.Sequential()
        for width in [channels, *[hidden] * (blocks - 1)]:
            self.net.append(nn.Conv2d(width, hidden, kernel_size, padding=kernel_size // 2))
            self.net.append(nn.SiLU())
        self.net.append(nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        change = self.net(x)
        return x + change if self.use_residual else change


class TokenMap(nn.Module):
    """A transformer over the tokens of a frame; its output projection is always there and starts at zero."""

    def __init__(
        self,
        channels: int,
        patch_size: int = 4,
        d_model: int = 256,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int = 1024,
        use_residual: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size, self.d_model, self.use_residual = patch_size, d_model, use_residual
        width = channels * patch_size**2
        self.in_proj = nn.Identity() if width == d_model else nn.Linear(width, d_model, bias=False)
        self.tr = FilmTransformer(d_model, n_layers, n_heads, d_ff)
        self.out_proj = nn.Linear(d_model, width, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens, shape = patchify(x.unsqueeze(1), self.patch_size)
        h = self.in_proj(tokens.squeeze(1))
        h = self.tr(h + grid_positions(*shape, self.d_model).to(h))
        change = unpatchify(self.out_proj(h).unsqueeze(1), self.patch_size, shape).squeeze(1)
        return x + change if self.use_residual else change


def grid_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Positions by whole numbers; both halves of the features are even: `(n, dim)`."""
    dim_y = dim // 2 - dim // 2 % 2
    dim_x = dim - dim_y
    if dim_x % 2:
        dim_y, dim_x = dim_y + 1, dim_x - 1
    features = grid_features(sinusoid(torch.arange(rows), dim_y), sinusoid(torch.arange(columns), dim_x), dim)
    return features[:, :dim]


class Straightener(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, z: Tensor) -> Tensor:
        """Latents `(b, c, h, w)` to straightened latents."""
        return self.encoder(z)

    def decode(self, s: Tensor) -> Tensor:
        """And back."""
        return self.decoder(s)

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Both keyframes encoded in one call, mixed at α `(b,)`, decoded: the latent and the mixed encoding."""
        s0, s1 = self.encode(torch.cat((z0, z1))).chunk(2)
        mixed = torch.lerp(s0, s1, alpha.to(s0.dtype).view(-1, 1, 1, 1))
        return self.decode(mixed), mixed


def conv_straightener(
    in_channels: int, hidden_channels: int = 64, blocks: int = 2, kernel_size: int = 3, use_residual: bool = True
) -> Straightener:
    """Convolutional straightener."""
    settings = (in_channels, hidden_channels, blocks, kernel_size, use_residual)
    return Straightener(ConvMap(*settings), ConvMap(*settings))


def token_straightener(
    in_channels: int,
    patch_size: int = 4,
    d_model: int = 256,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int = 1024,
    use_residual: bool = True,
) -> Straightener:
    """Token transformer straightener."""
    settings = (in_channels, patch_size, d_model, n_layers, n_heads, d_ff, use_residual)
    return Straightener(TokenMap(*settings), TokenMap(*settings))
