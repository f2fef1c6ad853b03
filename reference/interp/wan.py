"""The Wan2.1 transformer as a refiner of latents (spec 8.4), with the key names of the diffusers checkpoint.

Precision of a bf16 model: time embedder, modulation tables, norms and rotary tables stay float32; every norm, gate and
residual add is computed in float32 and goes back to the dtype of the stream.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .lora import inject_lora
from .rope import AbsoluteTimeRope, rotate
from .sla import SparseLinearAttention

KEPT_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · w` over the full width, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        u = x.float()
        u = u * torch.rsqrt(u.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (u * self.weight.float()).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm in float32 of a float32 input; with weights only if `affine`."""

    def __init__(self, dim: int, eps: float, affine: bool = False) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (self.dim,), self.weight, self.bias, self.eps)


class Processor(nn.Module):
    """Holder of the sparse-linear attention of one attention module (keys `processor.sla.*`)."""

    def __init__(self, sla: SparseLinearAttention) -> None:
        super().__init__()
        self.sla = sla


class WanAttention(nn.Module):
    """Self attention with rotary tables, or cross attention without: `(b, l, d)` -> `(b, l, d)`."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)
        self.processor: Processor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`softmax(q kᵀ / √d) v`, `(b, l, h, d)` each."""
        q, k, v = (rearrange(x, "b l h d -> b h l d") for x in (q, k, v))
        weights = (q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return rearrange((weights @ v.float()).to(v.dtype), "b h l d -> b l h d")

    def forward(self, x: Tensor, context: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        source = x if context is None else context
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(source)), self.to_v(source)
        q, k, v = (rearrange(u, "b l (h d) -> b l h d", h=self.heads) for u in (q, k, v))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        sparse = self.processor is not None and context is None
        out = self.processor.sla(q, k, v) if sparse else self.attend(q, k, v)
        return self.to_out[0](out.flatten(2))


class GELUProjection(nn.Module):
    """Linear – GELU(tanh)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """`net.0` Linear – GELU(tanh), `net.2` Linear."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GELUProjection(dim, inner), nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Self attention, cross attention, feed-forward, all modulated but the middle one."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, eps: float, cross_attn_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm3 = LayerNorm(dim, eps), LayerNorm(dim, eps)
        self.norm2 = LayerNorm(dim, eps, affine=True) if cross_attn_norm else nn.Identity()
        self.attn1, self.attn2 = WanAttention(dim, heads, eps), WanAttention(dim, heads, eps)
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, context: Tensor, mod: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        table = (self.scale_shift_table + mod.float()).chunk(6, dim=1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table
        h = (self.norm1(x.float()) * (1 + scale) + shift).to(x.dtype)
        x = (x.float() + self.attn1(h, None, rope).float() * gate).to(x.dtype)
        x = x + self.attn2(self.norm2(x.float()).to(x.dtype), context, None)
        h = (self.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).to(x.dtype)
        return (x.float() + self.ffn(h).float() * ffn_gate).to(x.dtype)


class TimestepEmbedder(nn.Module):
    """Linear – SiLU – Linear on the sinusoid of the level, float32."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(freq_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TextEmbedder(nn.Module):
    """Linear – GELU(tanh) – Linear on text tokens."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(text_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class ConditionEmbedder(nn.Module):
    """Level and text: temb `(b, d)`, modulation `(b, 6d)`, context `(b, l, d)`."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = TimestepEmbedder(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = TextEmbedder(text_dim, dim)

    def sinusoid(self, level: Tensor) -> Tensor:
        """`[cos(s f), sin(s f)]`, `f_i = 10000^(−i/half)`: `(b,)` -> float32 `(b, freq_dim)`, cos first."""
        half = self.freq_dim // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, device=level.device).float() / half)
        angles = level.float()[:, None] * rates[None]
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, level: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wave = self.sinusoid(level).to(self.time_embedder.linear_1.weight.dtype)
        temb = self.time_embedder(wave).to(text.dtype)
        return temb, self.time_proj(F.silu(temb)), self.text_embedder(text)


class WanTransformer(nn.Module):
    """Latents `(b, c, t, h, w)` at level `(b,)` with text `(b, l, text_dim)` -> change of the latents."""

    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        self.patch, self.head_dim = tuple(patch_size), attention_head_dim
        self.rope = AbsoluteTimeRope(attention_head_dim, self.patch, rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(in_channels, dim, self.patch, self.patch)
        self.condition_embedder = ConditionEmbedder(dim, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            Block(dim, num_attention_heads, ffn_dim, eps, cross_attn_norm) for _ in range(num_layers)
        )
        self.norm_out = LayerNorm(dim, eps)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(self.patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of latents and text: that of the patch embedding, not of the first parameter, which is float32."""
        return self.patch_embedding.weight.dtype

    def use_sla(self, topk: float, feature_map: str = "softmax", **options: object) -> int:
        """Give every attention module a sparse-linear attention; cross attention owns one and does not use it."""
        found = [module for module in self.modules() if isinstance(module, WanAttention)]
        for module in found:
            sla = SparseLinearAttention(self.head_dim, topk, feature_map, **{"BLKQ": 128, "BLKK": 64, **options})
            module.processor = Processor(sla)
        return len(found)

    def cast(self, dtype: torch.dtype) -> WanTransformer:
        """Cast as a half-precision load does: what must stay float32 does."""
        for name, parameter in self.named_parameters():
            if not any(part in name.split(".") for part in KEPT_FLOAT32):
                parameter.data = parameter.data.to(dtype)
        return self

    def forward(self, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
        rope = self.rope(latents)
        x = self.patch_embedding(latents)
        grid = x.shape[2:]
        x = rearrange(x, "b d t h w -> b (t h w) d")
        temb, mod, context = self.condition_embedder(level, text)
        mod = mod.unflatten(1, (6, -1))
        for block in self.blocks:
            x = block(x, context, mod, rope)
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).to(x.dtype))
        pt, ph, pw = self.patch
        t, h, w = grid
        pattern = "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)"
        return rearrange(x, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def build(**config: object) -> WanTransformer:
    """A transformer in eval mode."""
    return WanTransformer(**config).eval()


def adapt(model: WanTransformer, sla_options: dict[str, object], lora_options: dict[str, object]) -> list[str]:
    """Sparse attention first, adapters second, as checkpoints are trained: the adapters wrap every `proj_l` too."""
    model.use_sla(**sla_options)
    return inject_lora(model, **lora_options)
