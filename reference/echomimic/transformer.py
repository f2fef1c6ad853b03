"""Spatial transformers: the reference network's write their normed tokens down, the denoiser's read them (spec 3.2, 4)."""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .layers import Attention, FeedForward, GroupNorm, InflatedConv, from_rows, to_rows

TRANSFORMER_EPS = 1e-6
AUDIO_FEATURE_RATIO = 3.0  # fixed upstream (spec 4.3)


class WriteBlock(nn.Module):
    """Self attention and feed-forward; `bank` keeps a copy of the first norm's output (spec 4.1)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        self.bank: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:  # (1, s, c)
        n = self.norm1(x)
        self.bank.append(n.clone())
        x = self.attn1(n, n) + x
        return self.ff(self.norm3(x)) + x


class ReadBlock(nn.Module):
    """Self attention that also sees the reference's tokens, audio cross attention, feed-forward (spec 4.3)."""

    def __init__(self, dim: int, heads: int, audio_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, audio_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, audio: Tensor, bank: Tensor | None, cfg: bool) -> Tensor:
        """x (rows, s, c), audio tokens (rows, m, audio_dim), bank (batch, s, c) or None -> (rows, s, c).

        With `cfg` the first half of the rows is unconditional and does not see the reference.
        """
        n = self.norm1(x)
        y = self.attn1(n, self.with_reference(n, bank)) + x
        if cfg:
            half = x.shape[0] // 2
            unconditional = self.attn1(n[:half], n[:half]) + x[:half]
            y = torch.cat([unconditional, y[half:]])
        y = AUDIO_FEATURE_RATIO * self.attn2(self.norm2(y), audio) + y
        return self.ff(self.norm3(y)) + y

    def with_reference(self, n: Tensor, bank: Tensor | None) -> Tensor:
        """Own tokens first, then those of the bank, which every frame of a batch entry shares: (rows, 2s, c).

        The dtypes promote: a float16 bank in a float32 model stays rounded, in bfloat16 the keys become float32 and
        attention raises (quirk `bank-float16`).
        """
        if bank is None:
            return n
        frames = n.shape[0] // bank.shape[0]
        return torch.cat([n, repeat(bank, "b s c -> (b f) s c", f=frames)], dim=1)


def audio_rows(audio: Tensor, rows: int) -> Tensor:
    """Audio of each frame as the keys of its row: (b, f, m, d) -> (rows, m, d); (b, f, d) is one token a frame.

    Nothing is flattened when the batch is as long as the rows, so that a window of one frame fails (quirk `one-frame`).
    """
    if audio.shape[0] == rows:
        return audio
    return rearrange(audio, "b f m d -> (b f) m d") if audio.dim() == 4 else rearrange(audio, "b f d -> (b f) 1 d")


class SpatialTransformer(nn.Module):
    """GroupNorm, 1×1 convolution, one block over the h·w tokens of each frame, 1×1 convolution, + input.

    `path` is its place in the network, by which it finds its bank.
    """

    def __init__(self, dim: int, block: nn.Module, groups: int, path: str) -> None:
        super().__init__()
        self.path = f"{path}.transformer_blocks.0"
        self.norm = GroupNorm(groups, dim, TRANSFORMER_EPS)
        self.proj_in = InflatedConv(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = InflatedConv(dim, dim, 1)

    def forward(self, x: Tensor, audio: Tensor | None = None, bank: Tensor | None = None, cfg: bool = False) -> Tensor:
        """Image or clip -> the same shape."""
        rows = to_rows(x)
        y = self.proj_in(self.norm(rows))
        tokens = rearrange(y, "n c h w -> n (h w) c")
        if audio is None:
            tokens = self.transformer_blocks[0](tokens)
        else:
            tokens = self.transformer_blocks[0](tokens, audio_rows(audio, rows.shape[0]), bank, cfg)
        y = self.proj_out(rearrange(tokens, "n (h w) c -> n c h w", h=y.shape[2]).contiguous())
        return from_rows(y + rows, x)
