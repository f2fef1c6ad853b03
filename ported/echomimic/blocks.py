"""Layers of the port: clips are rows `(b·f, c, h, w)` throughout, made of diffusers' own blocks.

Every frame is a row, so convolutions and GroupNorms are the library's 2-D ones; only the motion modules look across rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from torch import Tensor, nn

AUDIO_SCALE = 3.0
MOTION_GROUPS = 32


class FrameResnet(ResnetBlock2D):
    """The library's ResNet block on rows: the time shift is computed once a clip and shared by its frames."""

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:  # type: ignore[override]
        y = self.conv1(F.silu(self.norm1(hidden_states)))
        shift = self.time_emb_proj(F.silu(temb))
        y = y + shift.repeat_interleave(len(y) // len(shift), dim=0)[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        if self.conv_shortcut is not None:
            hidden_states = self.conv_shortcut(hidden_states)
        return hidden_states + y


def resnet(ins: int, outs: int, time_dim: int, groups: int) -> FrameResnet:
    """A block as SD configures it."""
    return FrameResnet(in_channels=ins, out_channels=outs, temb_channels=time_dim, groups=groups, eps=1e-5)


def attention(dim: int, heads: int, cross: int | None = None) -> Attention:
    """The library's attention: no bias in q, k and v."""
    return Attention(query_dim=dim, cross_attention_dim=cross, heads=heads, dim_head=dim // heads, bias=False)


class ReferenceBlock(nn.Module):
    """Transformer block of the reference network: hands its normed tokens to `sink` (spec 4.1)."""

    def __init__(self, dim: int, heads: int, path: str) -> None:
        super().__init__()
        self.path = path
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = attention(dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")

    def forward(self, hidden_states: Tensor, sink: dict[str, list[Tensor]]) -> Tensor:
        normed = self.norm1(hidden_states)
        sink.setdefault(self.path, []).append(normed.clone())
        hidden_states = hidden_states + self.attn1(normed)
        return hidden_states + self.ff(self.norm3(hidden_states))


class DenoiserBlock(nn.Module):
    """Transformer block of the denoiser: reference tokens behind its own, audio, feed-forward (spec 4.3)."""

    def __init__(self, dim: int, heads: int, audio_dim: int, path: str) -> None:
        super().__init__()
        self.path = path
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = attention(dim, heads, audio_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")

    def forward(self, hidden_states: Tensor, audio: Tensor, bank: Tensor | None, guided: bool) -> Tensor:
        """Rows (n, s, c), audio (n, m, d), bank (batch, s, c); `guided`: the first half of the rows sees no reference."""
        hidden_states = self.self_attention(hidden_states, bank, guided)
        hidden_states = hidden_states + self.weigh_audio(self.attn2(self.norm2(hidden_states), audio))
        return hidden_states + self.ff(self.norm3(hidden_states))

    def self_attention(self, hidden_states: Tensor, bank: Tensor | None, guided: bool) -> Tensor:
        normed = self.norm1(hidden_states)
        mixed = self.attn1(normed, self.keys(normed, bank)) + hidden_states
        if guided:
            half = len(normed) // 2
            mixed[:half] = self.attn1(normed[:half], normed[:half]) + hidden_states[:half]
        return mixed

    def keys(self, normed: Tensor, bank: Tensor | None) -> Tensor:
        """Own tokens and, behind them, those of the bank for every frame."""
        if bank is None:
            return normed
        shared = bank.repeat_interleave(len(normed) // len(bank), dim=0)
        return torch.cat([normed, shared.to(normed.dtype)], dim=1)

    def weigh_audio(self, attended: Tensor) -> Tensor:
        return attended * AUDIO_SCALE


class FrameTransformer(nn.Module):
    """GroupNorm, 1×1 convolution, one block over the pixels of a frame, 1×1 convolution, residual."""

    def __init__(self, dim: int, groups: int, block: nn.Module) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(
        self,
        rows: Tensor,
        audio: Tensor | None = None,
        bank: Tensor | None = None,
        guided: bool = False,
        sink: dict[str, list[Tensor]] | None = None,
    ) -> Tensor:
        """The reference network's block is given `sink`, the denoiser's everything else."""
        n, c, h, w = rows.shape
        tokens = self.proj_in(self.norm(rows)).flatten(2).transpose(1, 2)
        block = self.transformer_blocks[0]
        tokens = block(tokens, audio, bank, guided) if sink is None else block(tokens, sink)
        return self.proj_out(tokens.transpose(1, 2).reshape(n, c, h, w).contiguous()) + rows


class FramePositions(nn.Module):
    """The sinusoidal table of a window's frames, added to what attends (spec 5)."""

    def __init__(self, dim: int, max_len: int) -> None:
        super().__init__()
        k = torch.arange(dim) // 2
        angles = torch.arange(max_len)[:, None] / 10000 ** (2 * k / dim)[None]
        even = torch.arange(dim) % 2 == 0
        self.register_buffer("pe", torch.where(even, angles.sin(), angles.cos())[None])

    def forward(self, hidden_states: Tensor) -> Tensor:
        frames = hidden_states.shape[1]
        if frames > self.pe.shape[1]:
            raise ValueError(f"{frames} frames in one window, the table has {self.pe.shape[1]}")
        return hidden_states + self.rows(frames)

    def rows(self, frames: int) -> Tensor:
        return self.pe[:, :frames]


class FrameAttention(Attention):
    """The library's attention across the frames of each pixel."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__(query_dim=dim, heads=heads, dim_head=dim // heads, bias=False)
        self.pos_encoder = FramePositions(dim, max_len)

    def forward(self, hidden_states: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        pixels = hidden_states.shape[1]
        across = self.pos_encoder(rearrange(hidden_states, "(b f) s c -> (b s) f c", f=frames))
        return rearrange(super().forward(across), "(b s) f c -> (b f) s c", s=pixels)


class MotionBlock(nn.Module):
    """Two attentions across frames, and a feed-forward."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(FrameAttention(dim, heads, max_len) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.ff = FeedForward(dim, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(dim)

    def forward(self, hidden_states: Tensor, frames: int) -> Tensor:
        for attend, norm in zip(self.attention_blocks, self.norms, strict=True):
            hidden_states = hidden_states + attend(norm(hidden_states), frames)
        return hidden_states + self.ff(self.ff_norm(hidden_states))


class MotionTransformer(nn.Module):
    """GroupNorm, Linear, one block, Linear, residual; an identity until its weights are loaded."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(MOTION_GROUPS, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([MotionBlock(dim, heads, max_len)])
        self.proj_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, rows: Tensor, frames: int) -> Tensor:
        n, c, h, w = rows.shape
        tokens = self.proj_in(self.norm(rows).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, frames))
        return tokens.transpose(1, 2).reshape(n, c, h, w) + rows


class Motion(nn.Module):
    """The name that checkpoints give it."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.temporal_transformer = MotionTransformer(dim, heads, max_len)

    def forward(self, rows: Tensor, frames: int) -> Tensor:
        return self.temporal_transformer(rows, frames)
