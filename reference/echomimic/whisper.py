"""The encoder of Whisper, whose hidden states are the audio features (spec 6.3, step 4)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import WhisperConfig


def sinusoids(length: int, dim: int) -> Tensor:
    """`[sin(p·r_k), cos(p·r_k)]`, `r_k = e^(−k·ln(10000)/(dim/2 − 1))`: (length, dim)."""
    half = dim // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WhisperAttention(nn.Module):
    """Self attention; q and k are each scaled by d^(−1/4); the key has no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.shape[-1] // self.heads) ** -0.25
        q, k, v = (
            rearrange(part, "n s (h d) -> n h s d", h=self.heads)
            for part in (self.query(x) * scale, self.key(x) * scale, self.value(x))
        )
        weights = (q @ k.transpose(-1, -2)).float().softmax(dim=-1).to(v.dtype)
        return self.out(rearrange(weights @ v, "n h s d -> n s (h d)"))


class WhisperBlock(nn.Module):
    """Attention and MLP with exact GELU, each behind its norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = WhisperAttention(dim, heads)
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    """Mel (n, 80, 3000) -> all hidden states (layers + 1, n, 1500, state); `ln_post` is loaded and not used."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(config.n_audio_ctx, dim))
        self.blocks = nn.ModuleList(WhisperBlock(dim, config.n_audio_head) for _ in range(config.n_audio_layer))
        self.ln_post = nn.LayerNorm(dim)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positional_embedding.to(x.dtype)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return torch.stack(states)
