"""The UMT5 encoder (spec A11): unscaled attention, a position table for every block, gated tanh-GELU.

Precision: everything in the dtype of the weights (bf16 officially), the norm's mean square and the softmax in float32.
Keys are the official ones.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import T5Config


class RMSNorm(nn.Module):
    """`x · rsqrt(mean(x₃₂²) + 1e-6)`, cast to the dtype of the weight when that is half, times weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(dim=-1, keepdim=True) + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return self.weight * x


class TanhGELU(nn.Module):
    """`0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`, written out: in half precision every operation rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Attention(nn.Module):
    """Attention without scaling and without biases; the position bias and the mask are added to the scores."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.dim, config.dim_attn, bias=False) for _ in range(3))
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def score_bias(self, x: Tensor, mask: Tensor, pos_bias: Tensor) -> Tensor:
        """Position bias, masked keys at the lowest finite value of the dtype: `(b, heads, l, l)`."""
        bias = x.new_zeros(x.shape[0], self.num_heads, x.shape[1], x.shape[1]) + pos_bias
        return bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(x.dtype).min)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """`softmax₃₂(q kᵀ + bias) v`, `(b, l, heads, c)` -> `(b, l, heads·c)`, what goes into `o`."""
        scores = torch.einsum("binc,bjnc->bnij", q, k) + bias
        weights = scores.float().softmax(dim=-1).to(scores.dtype)
        return rearrange(torch.einsum("bnij,bjnc->binc", weights, v), "b l n c -> b l (n c)")

    def forward(self, x: Tensor, mask: Tensor, pos_bias: Tensor) -> Tensor:  # (b, l, dim), (b, l), (1, heads, l, l)
        q, k, v = (rearrange(p(x), "b l (n c) -> b l n c", n=self.num_heads) for p in (self.q, self.k, self.v))
        return self.o(self.attend(q, k, v, self.score_bias(x, mask, pos_bias)))


class FeedForward(nn.Module):
    """`fc2(fc1(x) · GELU(gate(x)))`; `(b, l, dim)` -> `(b, l, dim)`."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), TanhGELU())
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) * self.gate(x))


def bucket(relative: Tensor, num_buckets: int, max_dist: int) -> Tensor:
    """Bidirectional buckets of int64 relative positions (key index − query index); same shape, int64.

    With n buckets a direction and e = n/2 exact ones: `n·[rel>0] + |rel|` below e, from there on
    `n·[rel>0] + min(e + ⌊ln(|rel|/e) / ln(max_dist/e) · (n−e)⌋, n−1)`.
    """
    n = num_buckets // 2
    exact = n // 2
    distance = relative.abs()
    far = torch.log(distance.float() / exact) / math.log(max_dist / exact) * (n - exact)
    # -inf at distance 0 has no integer; those entries take the exact branch
    far = exact + far.clamp(min=0).to(torch.long)
    return n * (relative > 0).to(torch.long) + torch.where(distance < exact, distance, far.clamp(max=n - 1))


class RelativePositions(nn.Module):
    """The position table of one block (key `pos_embedding.embedding.weight`, `(buckets, heads)`)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.num_buckets, self.max_dist = config.num_buckets, config.max_dist
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, queries: int, keys: int) -> Tensor:
        """Bias of `queries` by `keys` positions: `(1, heads, queries, keys)`."""
        device = self.embedding.weight.device
        relative = torch.arange(keys, device=device)[None, :] - torch.arange(queries, device=device)[:, None]
        return rearrange(self.embedding(bucket(relative, self.num_buckets, self.max_dist)), "q k n -> 1 n q k")


def limit_half(x: Tensor) -> Tensor:
    """Clamp the infinities of a float16 stream just inside its range; other dtypes pass."""
    if x.dtype == torch.float16 and torch.isinf(x).any():
        limit = torch.finfo(x.dtype).max - 1000
        return x.clamp(-limit, limit)
    return x


class Block(nn.Module):
    """`x + attn(norm1(x))`, `x + ffn(norm2(x))`; `(b, l, dim)` -> `(b, l, dim)`."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim)
        self.attn = Attention(config)
        self.norm2 = RMSNorm(config.dim)
        self.ffn = FeedForward(config)
        self.pos_embedding = RelativePositions(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pos_bias = self.pos_embedding(x.shape[1], x.shape[1])
        x = limit_half(x + self.attn(self.norm1(x), mask, pos_bias))
        return limit_half(x + self.ffn(self.norm2(x)))


class UMT5Encoder(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 ids and mask, `(b, l)` each (1 = real token) -> `(b, l, dim)`, pads included."""
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
