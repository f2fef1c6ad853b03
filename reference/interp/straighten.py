"""Latent straighteners: an encoder S and a decoder R, residual by default (spec 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .film import FilmTransformer, pad_features, sinusoid
from .patches import patchify, unpatchify


class ConvMap(nn.Module):
    """Convolutions with SiLU between, the last one 1×1: `(b, c, h, w)` -> `(b, c, h, w)`."""

    def __init__(self, channels: int, hidden: int, blocks: int, kernel_size: int, use_residual: bool) -> None:
        super().__init__()
        self.use_residual = use_residual
        parts: list[nn.Module] = []
        for i in range(blocks):
            inputs = channels if i == 0 else hidden
            parts += [nn.Conv2d(inputs, hidden, kernel_size, padding=kernel_size // 2), nn.SiLU()]
        self.net = nn.Sequential(*parts, nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x) if self.use_residual else self.net(x)


class TokenMap(nn.Module):
    """A transformer over the patch tokens of one frame, un-patchified as a change: `(b, c, h, w)` -> `(b, c, h, w)`."""

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
        token_dim = channels * patch_size**2
        self.in_proj = nn.Linear(token_dim, d_model, bias=False) if d_model != token_dim else nn.Identity()
        self.tr = FilmTransformer(d_model, n_layers, n_heads, d_ff)
        self.out_proj = nn.Linear(d_model, token_dim, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens, shape = patchify(x[:, None], self.patch_size)
        h = self.in_proj(tokens[:, 0])
        h = self.tr(h + grid_positions(*shape, self.d_model).to(h))
        delta = unpatchify(self.out_proj(h)[:, None], self.patch_size, shape)[:, 0]
        return x + delta if self.use_residual else delta


def grid_positions(rows: int, columns: int, dim: int) -> Tensor:
    """2-D sin-cos positions of a token grid, `[row, column]` features, float32 `(rows·columns, dim)`.

    Both halves are even: an odd feature moves from the rows to the columns, then back from the columns.
    """
    dim_y = dim // 2
    dim_x = dim - dim_y
    if dim_y % 2:
        dim_y, dim_x = dim_y - 1, dim_x + 1
    if dim_x % 2:
        dim_y, dim_x = dim_y + 1, dim_x - 1
    row_part, column_part = sinusoid(torch.arange(rows), dim_y), sinusoid(torch.arange(columns), dim_x)
    tokens = [torch.cat([row_part[y], column_part[x]]) for y in range(rows) for x in range(columns)]
    return pad_features(torch.stack(tokens), dim)


class Straightener(nn.Module):
    """Encoder and decoder of one kind."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, z: Tensor) -> Tensor:
        """To the space in which motion is straighter, `(b, c, h, w)`."""
        return self.encoder(z)

    def decode(self, s: Tensor) -> Tensor:
        """Back to latents, `(b, c, h, w)`."""
        return self.decoder(s)

    def interpolate_pair(self, z0: Tensor, z1: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Blend encodings at α `(b,)` and decode: the latent and the straightened latent."""
        a = alpha.to(z0.dtype).view(-1, 1, 1, 1)
        s = (1 - a) * self.encode(z0) + a * self.encode(z1)
        return self.decode(s), s


def conv_straightener(
    in_channels: int, hidden_channels: int = 64, blocks: int = 2, kernel_size: int = 3, use_residual: bool = True
) -> Straightener:
    """The convolutional straightener."""
    return Straightener(*(ConvMap(in_channels, hidden_channels, blocks, kernel_size, use_residual) for _ in range(2)))


def token_straightener(
    in_channels: int,
    patch_size: int = 4,
    d_model: int = 256,
    n_layers: int = 6,
    n_heads: int = 8,
    d_ff: int = 1024,
    use_residual: bool = True,
) -> Straightener:
    """The token transformer straightener."""
    make = lambda: TokenMap(in_channels, patch_size, d_model, n_layers, n_heads, d_ff, use_residual)  # noqa: E731
    return Straightener(make(), make())
