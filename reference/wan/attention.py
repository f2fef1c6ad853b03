"""Exact softmax attention and the three attention layers of a block (spec A4, A5).

Precision: under autocast v comes out of its Linear in bf16, q and k out of their float32 norms in float32. Like the
official flash attention, q and k follow the dtype of v and the result goes back to the dtype that q had on entry.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from . import rope
from .config import DiTConfig
from .norms import RMSNorm
from .precision import fp32_region

QUERY_ROWS = 1024  # queries at a time: the score matrix of a full-size video does not fit in memory


def attention(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None = None) -> Tensor:
    """`softmax(q kᵀ / sqrt(D)) v`, `(b, s, heads, D)` each -> `(b, s_q, heads, D)` in the dtype of q.

    Keys are limited to the first `key_lengths[i]` positions of sample i, queries are not limited. For half-precision v
    the products accumulate in float32 and the probabilities are rounded to the dtype of v.
    """
    out_dtype = q.dtype
    q, k, v = (rearrange(u, "b s h d -> b h s d") for u in (q.to(v.dtype), k.to(v.dtype), v))
    hidden = None
    if key_lengths is not None:
        positions = torch.arange(k.shape[2], device=k.device)
        hidden = (positions >= key_lengths.to(k.device)[:, None])[:, None, None]  # (b, 1, 1, s_k)
    with fp32_region(q.device):
        rows = [attend_rows(part, k, v, hidden) for part in q.split(QUERY_ROWS, dim=2)]
    return rearrange(torch.cat(rows, dim=2), "b h s d -> b s h d").to(out_dtype)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """Attend with some of the queries; `(b, heads, rows, D)` -> the same shape, dtype of v."""
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).to(v.dtype)
    return (weights.float() @ v.float()).to(v.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(b, s, d)` -> `(b, s, heads, D)`."""
    return rearrange(x, "b s (h d) -> b s h d", h=heads)


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None = None) -> Tensor:
    """Attend over `(b, s, heads, D)` and join the heads: `(b, s, d)`, what goes into `o`."""
    return attention(q, k, v, key_lengths).flatten(2)


class SelfAttention(nn.Module):
    """Global self attention with rotary positions; `(b, s, d)` -> `(b, s, d)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(d, config.eps), RMSNorm(d, config.eps)

    def rotate(self, q: Tensor, k: Tensor, grid_sizes: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q and k, `(b, s, heads, D)` each, to float32; v is not rotated."""
        return rope.apply(q, grid_sizes, freqs), rope.apply(k, grid_sizes, freqs)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seq_lens: Tensor) -> Tensor:
        """Attend to the real tokens of each sample; rotated q and k, `(b, s, heads, D)` -> `(b, s, d)` before `o`."""
        return attend(q, k, v, seq_lens)

    def forward(self, x: Tensor, seq_lens: Tensor, grid_sizes: Tensor, freqs: Tensor) -> Tensor:
        q = split_heads(self.norm_q(self.q(x)), self.num_heads)
        k = split_heads(self.norm_k(self.k(x)), self.num_heads)
        v = split_heads(self.v(x), self.num_heads)
        q, k = self.rotate(q, k, grid_sizes, freqs)
        return self.o(self.attend(q, k, v, seq_lens))


class CrossAttention(nn.Module):
    """Attention to the text, t2v: no rotary positions, no mask; `(b, s, d)`, `(b, 512, d)` -> `(b, s, d)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(d, config.eps), RMSNorm(d, config.eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to all 512 text tokens, pads included: `(b, s, d)` before `o`."""
        return attend(q, k, v)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = split_heads(self.norm_q(self.q(x)), self.num_heads)
        k = split_heads(self.norm_k(self.k(context)), self.num_heads)
        v = split_heads(self.v(context), self.num_heads)
        return self.o(self.attend(q, k, v))


class ImageCrossAttention(nn.Module):
    """Attention to image and text tokens, i2v and flf2v.

    The same q attends to the image part and to the text part separately; the outputs are added, then `o` is applied
    once. The image part is whatever stands before the last `text_len` tokens.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        d = config.dim
        self.num_heads, self.text_len = config.num_heads, config.text_len
        self.q, self.k, self.v, self.o, self.k_img, self.v_img = (nn.Linear(d, d) for _ in range(6))
        self.norm_q, self.norm_k, self.norm_k_img = (RMSNorm(d, config.eps) for _ in range(3))

    def attend_image(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to the image tokens: `(b, s, d)`."""
        return attend(q, k, v)

    def attend_text(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend to all 512 text tokens, pads included: `(b, s, d)`."""
        return attend(q, k, v)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        images = context.shape[1] - self.text_len
        image, text = context[:, :images], context[:, images:]
        q = split_heads(self.norm_q(self.q(x)), self.num_heads)
        k_img = split_heads(self.norm_k_img(self.k_img(image)), self.num_heads)
        v_img = split_heads(self.v_img(image), self.num_heads)
        k = split_heads(self.norm_k(self.k(text)), self.num_heads)
        v = split_heads(self.v(text), self.num_heads)
        return self.o(self.attend_text(q, k, v) + self.attend_image(q, k_img, v_img))
