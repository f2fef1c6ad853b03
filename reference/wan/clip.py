"""The CLIP vision tower and its preprocessing (spec A12).

Precision: the dtype of the weights (fp16 officially); layer norms in float32, cast back. Keys are the official ones
below `visual.`; `post_norm` and `head` exist in the checkpoint but the feature does not use them.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import CLIPConfig
from .norms import LayerNorm


def resize_square(image: Tensor, size: int) -> Tensor:
    """Squash `(3, h, w)` to `(3, size, size)` whatever its aspect ratio: bicubic, no antialias; it may overshoot."""
    return F.interpolate(image[None], size=(size, size), mode="bicubic", align_corners=False)[0]


def preprocess(images: list[Tensor], config: CLIPConfig) -> Tensor:
    """Images `(3, h, w)` in [−1, 1], sizes may differ -> normalised pixels `(n, 3, size, size)`."""
    pixels = torch.stack([resize_square(image, config.image_size) for image in images])
    pixels = pixels * 0.5 + 0.5
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (pixels - mean) / std


class Attention(nn.Module):
    """Full attention over the tokens of one image; `to_qkv` gives `(three, heads, width)` along the channels."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`softmax(q kᵀ / sqrt(D)) v`, `(n, heads, s, D)` -> `(n, s, dim)`, what goes into `proj`."""
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return rearrange(scores.softmax(dim=-1) @ v, "n h s d -> n s (h d)")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "n s (three h d) -> three n h s d", three=3, h=self.num_heads)
        return self.proj(self.attend(q, k, v))


class Block(nn.Module):
    """Pre-norm block with exact GELU; `(n, s, dim)` -> `(n, s, dim)`."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.dim * config.mlp_ratio
        self.norm1 = LayerNorm(dim, config.norm_eps, elementwise_affine=True)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(dim, config.norm_eps, elementwise_affine=True)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CLIPVision(nn.Module):
    """Images to token features."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        gain = dim**-0.5
        self.patch_embedding = nn.Conv2d(3, dim, patch, stride=patch, bias=False)
        self.cls_embedding = nn.Parameter(gain * torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(gain * torch.randn(1, config.tokens, dim))
        self.pre_norm = LayerNorm(dim, config.norm_eps, elementwise_affine=True)
        self.transformer = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.post_norm = LayerNorm(dim, config.norm_eps, elementwise_affine=True)
        self.head = nn.Parameter(gain * torch.randn(dim, config.out_dim))

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches behind the class token, with positions: `(n, 3, size, size)` -> `(n, tokens, dim)`."""
        patches = rearrange(self.patch_embedding(pixels), "n d h w -> n (h w) d")
        x = torch.cat([self.cls_embedding.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.pre_norm(x + self.pos_embedding)

    def run_blocks(self, x: Tensor, count: int) -> Tensor:
        """Run the first `count` blocks."""
        for block in self.transformer[:count]:
            x = block(x)
        return x

    def forward(self, pixels: Tensor) -> Tensor:
        """Feature of the last but one block, no post norm: `(n, 3, size, size)` -> `(n, tokens, dim)`."""
        return self.run_blocks(self.embed(pixels), len(self.transformer) - 1)

    def encode_images(self, images: list[Tensor]) -> Tensor:
        """Images `(3, h, w)` in [−1, 1] -> features `(n, tokens, dim)`."""
        pixels = preprocess(images, self.config)
        return self(pixels.to(self.patch_embedding.weight))
