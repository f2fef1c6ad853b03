"""Self- and cross-attention of the Waypoint port (spec A5, B10).

Precision: projections and norms in the model's dtype, rotary in fp32, the gate in the model's dtype. The "math" backend
multiplies q and k in the model's dtype, then scales, masks and normalises in fp32, as the reference does when eager.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .cache import WaypointKVCache
from .config import PortOptions, WaypointConfig
from .layers import ReplicatedLinear, RMSNorm
from .rotary import Positions, Rotary


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=scale)


def math_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: float) -> Tensor:
    """Explicit softmax: scores in the input's dtype, then fp32, probabilities back in the input's dtype."""
    scores = (q @ k.mT).float() * scale
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def flex_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: float) -> Tensor:
    """torch's flex attention with a token mask made afresh at every call; a mask here depends on the key only."""
    from torch.nn.attention import flex_attention as flex

    block_mask = None
    if keep is not None:
        visible = keep.flatten()

        def mask_mod(_b: Tensor, _h: Tensor, _q: Tensor, kv: Tensor) -> Tensor:
            return visible[kv]

        block_mask = flex.create_block_mask(mask_mod, None, None, q.shape[2], k.shape[2], device=q.device.type)
    return flex.flex_attention(q.contiguous(), k.contiguous(), v.contiguous(), block_mask=block_mask, scale=scale)


BACKENDS = {"sdpa": sdpa_attention, "math": math_attention, "flex": flex_attention}


class AttentionOp(nn.Module):
    """softmax(q k^T * scale, masked) v, with a choice of backend and of how many queries go at once."""

    def __init__(self, head_dim: int, options: PortOptions) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.backend = options.attention_backend
        self.query_chunk = options.query_chunk

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """q [B, H, T, d], k and v [B, H, S, d], keep bool [1, 1, 1, S], True = attended -> [B, H, T, d]."""
        chunks = q.split(self.query_chunk or q.shape[2], dim=2)
        return torch.cat([BACKENDS[self.backend](part, k, v, keep, self.scale) for part in chunks], dim=2)


class GatedSelfAttention(nn.Module):
    """Attention over the cached frames and the current one, each head gated by the layer's own input.

    q, k, v are [B, T, heads, d] through norm and rotary, and [B, heads, T, d] from the cache on.
    """

    def __init__(self, config: WaypointConfig, layer: int, rotary: Rotary, options: PortOptions) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.q_proj = ReplicatedLinear(config.d_model, width)
        self.k_proj = ReplicatedLinear(config.d_model, kv_width)
        self.v_proj = ReplicatedLinear(config.d_model, kv_width)
        self.qkv_proj: ReplicatedLinear | None = None
        self.out_proj = ReplicatedLinear(width, config.d_model)
        self.gate_proj = ReplicatedLinear(self.n_heads, self.n_heads) if config.gated_attn else None
        self.q_norm, self.k_norm = RMSNorm(), RMSNorm()
        self.rotary = rotary
        self.attention = AttentionOp(self.head_dim, options)

    def merge_projections(self) -> None:
        """Replace the three projections by one whose rows are [q; k; v] (option merged_qkv)."""
        rows = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)).detach()
        self.qkv_proj = ReplicatedLinear(rows.shape[1], rows.shape[0])
        self.qkv_proj.weight = nn.Parameter(rows)
        del self.q_proj, self.k_proj, self.v_proj

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> q [B, T, H, d], k and v [B, T, Hk, d]."""
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(x)[0].split([n * self.head_dim for n in self.head_counts], dim=-1)
        else:
            q, k, v = self.q_proj(x)[0], self.k_proj(x)[0], self.v_proj(x)[0]
        return tuple(rearrange(t, "b t (h d) -> b t h d", d=self.head_dim) for t in (q, k, v))

    @property
    def head_counts(self) -> tuple[int, int, int]:
        return self.n_heads, self.n_kv_heads, self.n_kv_heads

    def normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def rotate(self, q: Tensor, k: Tensor, pos: Positions) -> tuple[Tensor, Tensor]:
        """q [B, T, H, d], k [B, T, Hk, d], turned by the positions of their tokens."""
        return self.rotary(q, pos), self.rotary(k, pos)

    def expand_kv(self, kv: Tensor) -> Tensor:
        """[B, Hk, S, d] -> [B, H, S, d]: query head h reads kv head h // (H / Hk)."""
        return kv.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def attend(self, q: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
        """q [B, H, T, d], key and value [B, Hk, S, d], keep bool [1, 1, 1, S] -> [B, H, T, d]."""
        return self.attention(q, self.expand_kv(key), self.expand_kv(value), keep)

    def gate_input(self, x: Tensor) -> Tensor:
        """The first H features of the layer's input."""
        return x[..., : self.n_heads]

    def gate(self, y: Tensor, x: Tensor) -> Tensor:
        """y [B, H, T, d] with every head scaled by sigmoid(gate_proj(...)) of the input x [B, T, D]."""
        if self.gate_proj is None:
            return y
        logits, _ = self.gate_proj(self.gate_input(x))
        return y * rearrange(logits.sigmoid(), "b t h -> b h t 1")

    def merge(self, y: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, T, D]."""
        out, _ = self.out_proj(rearrange(y, "b h t d -> b t (h d)"))
        return out

    def forward(self, x: Tensor, pos_emb: Positions, kv_cache: WaypointKVCache) -> Tensor:
        q, k, v = self.project(x)
        q, k = self.normalise(q, k)
        q, k = self.rotate(q, k, pos_emb)
        q, k, v = (rearrange(t, "b t h d -> b h t d") for t in (q, k, v))
        key, value, keep = kv_cache.upsert(k, v, pos_emb["frame_t"], self.layer)
        y = self.attend(q, key, value, keep)
        return self.merge(self.gate(y, x))


class CrossAttention(nn.Module):
    """Attention of the frame's tokens over the prompt, without a mask: padded rows take softmax mass (spec A5)."""

    def __init__(self, config: WaypointConfig, options: PortOptions) -> None:
        super().__init__()
        context = config.prompt_embedding_dim
        self.head_dim = options.cross_head_dim or config.head_dim
        if context % self.head_dim:
            raise ValueError(f"Waypoint port: prompt_embedding_dim {context} is not a multiple of {self.head_dim}")
        self.q_proj = ReplicatedLinear(config.d_model, context)
        self.k_proj = ReplicatedLinear(context, context)
        self.v_proj = ReplicatedLinear(context, context)
        self.out_proj = ReplicatedLinear(context, config.d_model)
        self.q_norm, self.k_norm = RMSNorm(), RMSNorm()
        self.attention = AttentionOp(self.head_dim, options)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D], context [B, S, P] -> q [B, h, T, d], k and v [B, h, S, d], with h = P / d."""
        projected = (self.q_proj(x)[0], self.k_proj(context)[0], self.v_proj(context)[0])
        return tuple(rearrange(t, "b t (h d) -> b h t d", d=self.head_dim) for t in projected)

    def normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None) -> Tensor:
        """[B, h, T, d]; the padding mask [B, S] (True on padding) is taken and not used, as in the reference."""
        return self.attention(q, k, v)

    def merge(self, y: Tensor) -> Tensor:
        out, _ = self.out_proj(rearrange(y, "b h t d -> b t (h d)"))
        return out

    def forward(self, x: Tensor, context: Tensor, pad_mask: Tensor | None) -> Tensor:
        q, k, v = self.project(x, context)
        q, k = self.normalise(q, k)
        return self.merge(self.attend(q, k, v, pad_mask))
