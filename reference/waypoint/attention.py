"""Self-attention over the cached history and prompt cross-attention (spec waypoint, sections 5 and 8).

Precision: projections and q kᵀ in the engine dtype; scale, mask and softmax in float32; probabilities cast to the
engine dtype before the product with v. This is what flex attention computes in eager mode; masked keys contribute
exactly nothing.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from reference.waypoint.cache import StaticKVCache
from reference.waypoint.config import Config
from reference.waypoint.layers import rms
from reference.waypoint.rope import OrthoRope, PositionIds


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v with equal head counts; q [B,H,T,d], k and v [B,H,S,d].

    `keep` bool [S] depends on the key only; False hides the key from every query.
    """
    scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Attn(nn.Module):
    """Attend from a frame's tokens to the cached frames and itself; bidirectional within the frame."""

    def __init__(self, config: Config, layer: int, rope: OrthoRope) -> None:
        super().__init__()
        self.layer, self.n_heads, self.n_kv_heads = layer, config.n_heads, config.n_kv_heads
        d_kv = config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.qkv_proj: nn.Linear | None = None  # set by the merged-projection patch in place of the three
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gate_proj = nn.Linear(config.n_heads, config.n_heads, bias=False) if config.gated_attn else None
        self.v_lamb = nn.Parameter(torch.tensor(0.5)) if config.value_residual else None
        self.rope = rope

    def project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project z [B,T,D] to q [B,H,T,d] and k, v [B,Hk,T,d]."""
        if self.qkv_proj is None:
            q, k, v = self.q_proj(z), self.k_proj(z), self.v_proj(z)
        else:
            d = z.shape[-1] // self.n_heads
            q, k, v = self.qkv_proj(z).split([self.n_heads * d, self.n_kv_heads * d, self.n_kv_heads * d], dim=-1)
        q = rearrange(q, "b t (h d) -> b h t d", h=self.n_heads)
        k, v = (rearrange(x, "b t (h d) -> b h t d", h=self.n_kv_heads) for x in (k, v))
        return q, k, v

    def mix_values(self, v: Tensor, v1: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mix v with the first layer's v1 (value residual): v + v_lamb * (v1 - v). Layer 0 sets v1."""
        if self.v_lamb is None:
            return v, v1
        v1 = v if v1 is None else v1
        return v + self.v_lamb * (v1 - v), v1

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """RMS-normalise queries and keys per head, without weights."""
        return rms(q), rms(k)

    def rotated(self, q: Tensor, k: Tensor, pos_ids: PositionIds) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by position."""
        return self.rope(q, pos_ids), self.rope(k, pos_ids)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        """Attend with grouped heads: query head h reads kv head h // (H/Hk). Returns [B,H,T,d]."""
        groups = self.n_heads // self.n_kv_heads
        k, v = (repeat(x, "b hk s d -> b (hk g) s d", g=groups) for x in (k, v))
        return softmax_attention(q, k, v, keep)

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Scale head h of y [B,H,T,d] by sigmoid(gate_proj(first H features of z))[..., h]."""
        if self.gate_proj is None:
            return y
        gate = torch.sigmoid(self.gate_proj(z[..., : self.n_heads]))  # [B,T,H]
        return y * rearrange(gate, "b t h -> b h t 1")

    def forward(
        self, z: Tensor, pos_ids: PositionIds, v1: Tensor | None, kv_cache: StaticKVCache
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention output [B,T,D] and v1 for the next layers."""
        q, k, v = self.project(z)
        v, v1 = self.mix_values(v, v1)
        q, k = self.normed(q, k)
        q, k = self.rotated(q, k, pos_ids)
        (k_all, v_all), keep = kv_cache.upsert(k, v, pos_ids, self.layer)
        y = self.attend(q, k_all, v_all, keep)
        y = self.gate(y, z)
        return self.out_proj(rearrange(y, "b h t d -> b t (h d)")), v1


class CrossAttention(nn.Module):
    """Attend from a frame's tokens to the prompt; inner size is the context's, heads = P / d.

    The padding mask is accepted and IGNORED: padded rows are zero, so they have k = v = 0, logit 0, and take softmax
    mass.
    """

    def __init__(self, dim: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.n_heads = context_dim // head_dim
        self.q_proj = nn.Linear(dim, context_dim, bias=False)
        self.k_proj = nn.Linear(context_dim, context_dim, bias=False)
        self.v_proj = nn.Linear(context_dim, context_dim, bias=False)
        self.out_proj = nn.Linear(context_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Return [B,T,D] from x [B,T,D], context [B,S,P]; pad_mask bool [B,S], True on padding, is not used."""
        projected = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        q, k, v = (rearrange(y, "b s (h d) -> b h s d", h=self.n_heads) for y in projected)
        y = softmax_attention(rms(q), rms(k), v)
        return self.out_proj(rearrange(y, "b h t d -> b t (h d)"))
