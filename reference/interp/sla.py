"""Sparse-linear attention: softmax over the best key blocks plus a linear branch over all keys (spec 8.5).

Written with an L×L mask. Precision: block selection in the dtype of the inputs (means summed in float32), both branches
in `compute_dtype`, the result in the dtype of the inputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .lora import LoRALinear

FEATURE_MAPS = ("softmax", "elu", "relu")


class Blocks(NamedTuple):
    """Which key blocks every query block keeps."""

    pooled_q: Tensor  # (b, h, query blocks, d)
    pooled_k: Tensor  # (b, h, key blocks, d), of k minus its mean over tokens
    score: Tensor  # (b, h, query blocks, key blocks)
    kept: Tensor  # bool, the same shape


def block_means(x: Tensor, size: int) -> Tensor:
    """Mean of every block of rows; the last one may be shorter: `(b, h, l, d)` -> `(b, h, blocks, d)`."""
    return torch.stack([block.float().mean(dim=2) for block in x.split(size, dim=2)], dim=2).to(x.dtype)


def linear_as(layer: nn.Linear, x: Tensor) -> Tensor:
    """A Linear in the dtype of its input."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


class SparseLinearAttention(nn.Module):
    """q, k, v `(b, l, h, d)` -> `(b, l, h, d)`.

    `keep_one` keeps at least one key block; without it short sequences keep none and give 0/0 (upstream).
    """

    def __init__(
        self,
        head_dim: int,
        topk: float,
        feature_map: str = "softmax",
        BLKQ: int = 64,
        BLKK: int = 64,
        compute_dtype: torch.dtype = torch.bfloat16,
        keep_one: bool = True,
    ) -> None:
        super().__init__()
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"unknown feature map {feature_map!r}; there are {', '.join(FEATURE_MAPS)}")
        self.topk, self.feature_map, self.sizes = topk, feature_map, (BLKQ, BLKK)
        self.compute_dtype, self.keep_one = compute_dtype, keep_one
        self.proj_l = nn.Linear(head_dim, head_dim)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def kept_blocks(self, blocks: int) -> int:
        """How many key blocks a query block keeps."""
        return min(blocks, max(int(self.topk * blocks), 1 if self.keep_one else 0))

    def select(self, q: Tensor, k: Tensor) -> Blocks:
        """Score blocks by the products of their means and keep the best of every query block; `(b, h, l, d)` each."""
        pooled_q = block_means(q, self.sizes[0])
        pooled_k = block_means(k - k.mean(dim=2, keepdim=True), self.sizes[1])
        score = pooled_q @ pooled_k.transpose(-1, -2)
        best = score.topk(self.kept_blocks(score.shape[-1]), dim=-1).indices
        return Blocks(pooled_q, pooled_k, score, torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True))

    def sparse(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        """Softmax attention to the kept blocks only; all zero without any kept block divides 0 by 0."""
        length = q.shape[2]
        allowed = kept.repeat_interleave(self.sizes[0], dim=2)[:, :, :length]
        allowed = allowed.repeat_interleave(self.sizes[1], dim=3)[..., :length]
        scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~allowed, -math.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = torch.exp(scores - top)
        total = weights.sum(dim=-1, keepdim=True)
        return (weights.to(v.dtype).float() @ v.float() / total).to(v.dtype)

    def features(self, x: Tensor) -> Tensor:
        """φ, over the last axis."""
        if self.feature_map == "softmax":
            return x.softmax(dim=-1)
        return F.elu(x) + 1 if self.feature_map == "elu" else F.relu(x)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`φ(q)(φ(k)ᵀ v) / (1e-5 + φ(q)·Σ φ(k))` over all keys, before its projection."""
        fq, fk = self.features(q), self.features(k)
        context = fk.transpose(-1, -2) @ v
        return fq @ context / (1e-5 + (fq * fk.sum(dim=2, keepdim=True)).sum(dim=-1, keepdim=True))

    def project(self, o: Tensor) -> Tensor:
        """`proj_l` in the dtype of its input, with its adapter when it has one."""
        if isinstance(self.proj_l, LoRALinear):
            low = linear_as(self.proj_l.lora_B, linear_as(self.proj_l.lora_A, o))
            return linear_as(self.proj_l.base, o) + self.proj_l.scale * low
        return linear_as(self.proj_l, o)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = q.dtype
        q, k, v = (rearrange(x, "b l h d -> b h l d") for x in (q, k, v))
        kept = self.select(q, k).kept
        q, k, v = (x.to(self.compute_dtype) for x in (q, k, v))
        out = self.sparse(q, k, v, kept) + self.project(self.linear(q, k, v))
        return rearrange(out.to(dtype), "b h l d -> b l h d")

    def sparsity(self, length: int) -> float:
        """Share of key blocks that are kept."""
        blocks = math.ceil(length / self.sizes[1])
        return self.kept_blocks(blocks) / blocks
