"""The learned keyframe selector (spec 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .denoisers import TextEncoder, frame_positions
from .film import FilmTransformer


class VideoKeyframeSelector(nn.Module):
    """How much every frame deserves to be a keyframe, from the text: `(b, l, text_dim)` -> logits `(b, t)`."""

    def __init__(
        self,
        T: int,
        text_dim: int,
        d_model: int = 256,
        n_layers: int = 4,
        n_heads: int = 8,
        d_ff: int = 512,
        d_cond: int = 128,
        pos_dim: int = 64,
        use_level: bool = False,
    ) -> None:
        super().__init__()
        self.frames, self.pos_dim = T, pos_dim
        self.cond_enc = TextEncoder(text_dim, d_cond)
        self.level_mlp = None
        if use_level:
            self.level_mlp = nn.Sequential(nn.Linear(1, d_cond), nn.SiLU(), nn.Linear(d_cond, d_cond))
        self.pos_proj = nn.Linear(pos_dim, d_model)
        self.time_embed = nn.Parameter(torch.zeros(T, d_model))
        self.tr = FilmTransformer(d_model, n_layers, n_heads, d_ff, d_cond)
        self.out = nn.Linear(d_model, 1)

    def forward(self, text: Tensor, level: Tensor | None = None) -> Tensor:
        cond = self.cond_enc(text)
        if self.level_mlp is not None:
            if level is None:
                raise ValueError("this selector was built with levels: pass the level")
            cond = cond + self.level_mlp(level.to(cond))
        x = self.pos_proj(frame_positions(self.frames, self.pos_dim).to(cond)) + self.time_embed
        return self.out(self.tr(x.expand(len(cond), -1, -1), cond))[..., 0]
