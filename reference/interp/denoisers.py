"""The toy and the token refiner, and the keypoint models of phase 1 (spec 8.2, 8.3, 10.1).

Precision: everything in the dtype of the weights; positions are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .film import FilmTransformer, pad_features, sinusoid, unit_positions


class TextEncoder(nn.Module):
    """Mean over the tokens, then Linear – SiLU – Linear: `(b, l, text_dim)` -> `(b, d_cond)`."""

    def __init__(self, text_dim: int, d_cond: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(text_dim, d_cond), nn.SiLU(), nn.Linear(d_cond, d_cond))

    def forward(self, text: Tensor) -> Tensor:
        pooled = text.mean(dim=tuple(range(1, text.dim() - 1))) if text.dim() > 2 else text
        return self.proj(pooled.to(self.proj[0].weight.dtype))


class MazeEncoder(nn.Module):
    """Condition on an occupancy map, present in every checkpoint without text and mostly unused."""

    def __init__(self, d_cond: int, channels: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        a, b = channels
        self.convs = nn.Sequential(nn.Conv2d(1, a, 3, padding=1), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1), nn.SiLU())
        self.fc = nn.Linear(b, d_cond)

    def forward(self, occupancy: Tensor) -> Tensor:  # (b, 1, h, w) -> (b, d_cond)
        return self.fc(self.convs(occupancy).mean(dim=(2, 3)))


class StartGoalEncoder(nn.Module):
    """Condition on start and goal, four numbers."""

    def __init__(self, d_cond: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, d_cond), nn.SiLU(), nn.Linear(d_cond, d_cond))

    def forward(self, start_goal: Tensor) -> Tensor:
        return self.mlp(start_goal)


class ConditionEncoder(nn.Module):
    """The condition encoder without text (keys `cond_enc.maze.*`, `cond_enc.sg.*`)."""

    def __init__(self, d_cond: int, maze_channels: Sequence[int] = (32, 64), use_start_goal: bool = False) -> None:
        super().__init__()
        self.maze = MazeEncoder(d_cond, maze_channels)
        self.sg = StartGoalEncoder(d_cond) if use_start_goal else None

    def forward(self, cond: dict[str, Tensor]) -> Tensor:
        out = self.maze(cond["occ"])
        return out if self.sg is None else out + self.sg(cond["start_goal"])


def condition_vector(encoder: nn.Module, cond: Tensor | dict[str, Tensor] | None, like: Tensor, d_cond: int) -> Tensor:
    """The condition of a batch: encoded text or maze, zeros when there is none `(b, d_cond)`."""
    if cond is None:
        return like.new_zeros(len(like), d_cond)
    return encoder(cond)


class InterpLevelDenoiser(nn.Module):
    """Toy refiner: predicts the change of a flat video `(b, t, d)` at level `s` `(b,)` with masks `(b, t[, c])`."""

    def __init__(
        self,
        data_dim: int,
        max_levels: int,
        mask_channels: int = 1,
        d_model: int = 256,
        n_layers: int = 8,
        n_heads: int = 8,
        d_ff: int = 1024,
        d_cond: int = 128,
        text_dim: int | None = None,
        maze_channels: Sequence[int] = (32, 64),
        use_start_goal: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.d_cond, self.mask_width = d_model, d_cond, mask_channels
        self.in_proj = nn.Linear(data_dim + mask_channels, d_model)
        self.level_emb = nn.Embedding(max_levels + 1, d_model)
        self.level_proj = nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
        self.cond_enc = (
            ConditionEncoder(d_cond, maze_channels, use_start_goal)
            if text_dim is None
            else TextEncoder(text_dim, d_cond)
        )
        self.cond_proj = nn.Linear(d_cond, d_model)
        self.transformer = FilmTransformer(d_model, n_layers, n_heads, d_ff, d_cond)
        self.out = nn.Linear(d_model, data_dim)

    def embed_level(self, s: Tensor) -> Tensor:
        """`(b,)` -> `(b, d)`."""
        return self.level_proj(self.level_emb(s))

    def join(self, x: Tensor, mask: Tensor) -> Tensor:
        """Values and masks on one axis; a mask without channels is one."""
        mask = mask[..., None] if mask.dim() < x.dim() else mask
        return torch.cat([x, mask.to(x.dtype)], dim=-1)

    def forward(self, x: Tensor, s: Tensor, mask: Tensor, cond: Tensor | dict[str, Tensor] | None = None) -> Tensor:
        c = condition_vector(self.cond_enc, cond, x, self.d_cond)
        h = self.in_proj(self.join(x, mask))
        h = h + frame_positions(x.shape[1], self.d_model).to(h)[None]
        h = h + (self.embed_level(s) + self.cond_proj(c))[:, None]
        return self.out(self.transformer(h, c))


class VideoTokenInterpLevelDenoiser(InterpLevelDenoiser):
    """Token refiner: the same over t·n tokens, frame-major, `(b, t, n, d)`; shape is (Hp, Wp)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, s: Tensor, mask: Tensor, cond: Tensor | None = None, shape: tuple[int, int] = (1, 1)
    ) -> Tensor:
        frames, tokens = x.shape[1:3]
        c = condition_vector(self.cond_enc, cond, x, self.d_cond)
        h = self.in_proj(self.join(x, mask))
        time, space = frame_positions(frames, self.d_model).to(h), space_positions(*shape, self.d_model).to(h)
        h = h + time[None, :, None] + space[None, None]
        h = h + (self.embed_level(s) + self.cond_proj(c))[:, None, None]
        h = self.transformer(h.flatten(1, 2), c)
        return self.out(h).unflatten(1, (frames, tokens))


def frame_positions(frames: int, dim: int) -> Tensor:
    """Positions of frames in [0, 1], float32 `(t, dim)`."""
    return sinusoid(unit_positions(frames), dim)


def space_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Positions of tokens: half of the features from the row, half from the column, both in [0, 1]; `(n, dim)`."""
    half = (dim - dim % 2) // 2
    by_row, by_column = sinusoid(unit_positions(rows), half), sinusoid(unit_positions(columns), half)
    tokens = [torch.cat([by_row[y], by_column[x]]) for y in range(rows) for x in range(columns)]
    return pad_features(torch.stack(tokens), dim)


class KeypointModel(nn.Module):
    """What both keypoint models of phase 1 share: time step, condition, transformer."""

    def __init__(
        self, inputs: int, data_dim: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, d_cond: int
    ) -> None:
        super().__init__()
        self.d_model, self.d_cond = d_model, d_cond
        self.in_proj = nn.Linear(inputs, d_model)
        self.t_embed = nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
        self.cond_proj = nn.Linear(d_cond, d_model)
        self.transformer = FilmTransformer(d_model, n_layers, n_heads, d_ff, d_cond)
        self.out = nn.Linear(d_model, data_dim)

    def embed_time(self, t: Tensor) -> Tensor:
        """Time step `(b,)` -> `(b, d)`."""
        return self.t_embed(sinusoid(t, self.d_model).to(self.in_proj.weight.dtype))


class VideoTokenKeypointDenoiser(KeypointModel):
    """ε of the keyframes `(b, K, n, d)` at step t, with the absolute times `idx` `(b, K)` out of a clip of T frames."""

    def __init__(
        self,
        data_dim: int,
        text_dim: int,
        d_model: int = 512,
        n_layers: int = 8,
        n_heads: int = 8,
        d_ff: int = 2048,
        d_cond: int = 256,
    ) -> None:
        super().__init__(data_dim, data_dim, d_model, n_layers, n_heads, d_ff, d_cond)
        self.cond_enc = TextEncoder(text_dim, d_cond)

    def forward(self, z: Tensor, t: Tensor, idx: Tensor, text: Tensor, frames: int, shape: tuple[int, int]) -> Tensor:
        c = self.cond_enc(text)
        h = self.in_proj(z)
        times = frame_positions(frames, self.d_model).to(h)
        h = h + torch.stack([times[row] for row in idx])[:, :, None] + space_positions(*shape, self.d_model).to(h)
        h = h + (self.embed_time(t) + self.cond_proj(c))[:, None, None]
        return self.out(self.transformer(h.flatten(1, 2), c)).unflatten(1, z.shape[1:3])


class KeypointDenoiser(KeypointModel):
    """ε of the flat keyframes `(b, K, d)` of the toy data; known entries are marked `(b, K, d)`."""

    def __init__(
        self,
        data_dim: int,
        d_model: int = 256,
        n_layers: int = 8,
        n_heads: int = 8,
        d_ff: int = 1024,
        d_cond: int = 128,
        kp_feat_dim: int = 0,
        maze_channels: Sequence[int] = (32, 64),
    ) -> None:
        inputs = 2 * data_dim + d_model // 2 + kp_feat_dim
        super().__init__(inputs, data_dim, d_model, n_layers, n_heads, d_ff, d_cond)
        self.kp_feat_dim = kp_feat_dim
        self.cond_enc = ConditionEncoder(d_cond, maze_channels)

    def forward(
        self, z: Tensor, t: Tensor, idx: Tensor, known: Tensor, frames: int, cond: dict[str, Tensor] | None = None
    ) -> Tensor:
        c = condition_vector(self.cond_enc, cond, z, self.d_cond)
        places = torch.stack([sinusoid(row / max(frames - 1, 1), self.d_model // 2) for row in idx]).to(z)
        extra = z.new_zeros(*z.shape[:2], self.kp_feat_dim)
        h = self.in_proj(torch.cat([z, places, known.to(z.dtype), extra], dim=-1))
        h = h + (self.embed_time(t) + self.cond_proj(c))[:, None]
        return self.out(self.transformer(h, c))
