"""What turns the time step, the text and the images into vectors (spec A3, steps 3 to 5)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import DiTConfig
from .norms import LayerNorm32
from .precision import Linear32


def sinusoid(width: int, t: Tensor) -> Tensor:
    """`cat([cos a, sin a])`, `a_j = t · 10000^(−j/h)`, `h = width/2`: `(b,)` -> float32 `(b, width)`.

    Angles are float64, so an integer time step is exact; cos comes first.
    """
    half = width // 2
    exponents = -torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = torch.outer(t.to(torch.float64), torch.pow(10000.0, exponents))
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).float()


def time_embedding(config: DiTConfig) -> nn.Sequential:
    """`Linear(SiLU(Linear(s)))`, a float32 region: `(b, freq_dim)` -> e `(b, d)`."""
    return nn.Sequential(Linear32(config.freq_dim, config.dim), nn.SiLU(), Linear32(config.dim, config.dim))


def time_projection(config: DiTConfig) -> nn.Sequential:
    """`Linear(SiLU(e))`, a float32 region: `(b, d)` -> `(b, 6d)`."""
    return nn.Sequential(nn.SiLU(), Linear32(config.dim, 6 * config.dim))


def text_embedding(config: DiTConfig) -> nn.Sequential:
    """`Linear -> GELU(tanh) -> Linear`: `(b, 512, text_dim)` -> `(b, 512, d)`."""
    return nn.Sequential(
        nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
    )


def pad_texts(texts: list[Tensor], length: int) -> Tensor:
    """Zero-pad every text to `length` rows and stack: `(b, length, text_dim)`.

    Errors: ValueError when a text is longer.
    """
    too_long = [text.shape[0] for text in texts if text.shape[0] > length]
    if too_long:
        raise ValueError(f"texts of {too_long} tokens do not fit into text_len {length}")
    return torch.stack([torch.cat([u, u.new_zeros(length - u.shape[0], u.shape[1])]) for u in texts])


class ImageEmbedding(nn.Module):
    """`LayerNorm -> Linear -> GELU(erf) -> Linear -> LayerNorm` on CLIP features (keys `img_emb.*`).

    For flf2v each consecutive pair of rows (first frame, last frame) is merged into one sample of 2n tokens and
    `emb_pos` is added; `(2b, n, clip_dim)` -> `(b, 2n, d)`. Otherwise `(b, n, clip_dim)` -> `(b, n, d)`.
    The last norm, and with it the image part of the context, stays float32 under autocast.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        c, d = config.clip_dim, config.dim
        self.proj = nn.Sequential(
            LayerNorm32(c, eps=1e-5), nn.Linear(c, c), nn.GELU(), nn.Linear(c, d), LayerNorm32(d, eps=1e-5)
        )
        self.emb_pos: nn.Parameter | None = None
        if config.model_type == "flf2v":
            self.emb_pos = nn.Parameter(torch.zeros(1, 2 * config.clip_tokens, c))

    def forward(self, features: Tensor) -> Tensor:
        if self.emb_pos is not None:
            features = rearrange(features, "(b two) n c -> b (two n) c", two=2) + self.emb_pos
        return self.proj(features)
