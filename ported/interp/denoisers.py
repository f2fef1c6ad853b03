"""Refiners and keypoint models on the FiLM transformer (spec 8.2, 8.3, 10.1). Everything in the dtype of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ported.interp.film import FilmTransformer, frame_positions, sinusoid, space_positions


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Linear – SiLU – Linear."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class TextEncoder(nn.Module):
    """Pooled text to a condition vector."""

    def __init__(self, text_dim: int, d_cond: int) -> None:
        super().__init__()
        self.proj = mlp(text_dim, d_cond)

    def forward(self, text: Tensor) -> Tensor:
        return self.proj(self.pool(text).to(self.proj[0].weight.dtype))

    def pool(self, text: Tensor) -> Tensor:
        """Mean over everything between batch and features."""
        return text.flatten(1, -2).mean(dim=1) if text.dim() > 2 else text


class MazeEncoder(nn.Module):
    """Occupancy map to a condition vector."""

    def __init__(self, d_cond: int, channels: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for inputs, outputs in zip((1, channels[0]), channels, strict=True):
            self.convs.append(nn.Conv2d(inputs, outputs, 3, padding=1)).append(nn.SiLU())
        self.fc = nn.Linear(channels[1], d_cond)

    def forward(self, occupancy: Tensor) -> Tensor:
        return self.fc(self.convs(occupancy).mean(dim=(-2, -1)))


class StartGoal(nn.Module):
    """Start and goal to a condition vector."""

    def __init__(self, d_cond: int) -> None:
        super().__init__()
        self.mlp = mlp(4, d_cond)

    def forward(self, start_goal: Tensor) -> Tensor:
        return self.mlp(start_goal)


class ConditionEncoder(nn.Module):
    """Maze, and start and goal on request."""

    def __init__(self, d_cond: int, maze_channels: Sequence[int] = (32, 64), use_start_goal: bool = False) -> None:
        super().__init__()
        self.maze = MazeEncoder(d_cond, maze_channels)
        self.sg = StartGoal(d_cond) if use_start_goal else None

    def forward(self, cond: dict[str, Tensor]) -> Tensor:
        out = self.maze(cond["occ"])
        return out if self.sg is None else out + self.sg(cond["start_goal"])


class Conditioned(nn.Module):
    """What all four models share: condition vector, transformer, output."""

    def __init__(
        self, inputs: int, outputs: int, d_model: int, layers: int, heads: int, d_ff: int, d_cond: int
    ) -> None:
        super().__init__()
        self.d_model, self.d_cond = d_model, d_cond
        self.in_proj = nn.Linear(inputs, d_model)
        self.cond_proj = nn.Linear(d_cond, d_model)
        self.transformer = FilmTransformer(d_model, layers, heads, d_ff, d_cond)
        self.out = nn.Linear(d_model, outputs)

    def condition(self, cond: Tensor | dict[str, Tensor] | None, like: Tensor) -> Tensor:
        """Condition vector `(b, d_cond)`; zeros without a condition."""
        return like.new_zeros(len(like), self.d_cond) if cond is None else self.cond_enc(cond)


class InterpLevelDenoiser(Conditioned):
    """Toy refiner: change of `(b, t, d)` at level `(b,)`."""

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
        super().__init__(data_dim + mask_channels, data_dim, d_model, n_layers, n_heads, d_ff, d_cond)
        self.level_emb = nn.Embedding(max_levels + 1, d_model)
        self.level_proj = mlp(d_model, d_model)
        text = text_dim is not None
        self.cond_enc = (
            TextEncoder(text_dim, d_cond) if text else ConditionEncoder(d_cond, maze_channels, use_start_goal)
        )

    def embed(self, x: Tensor, s: Tensor, mask: Tensor, c: Tensor) -> Tensor:
        """Values and masks, level and condition: what enters the transformer before positions."""
        mask = mask if mask.dim() == x.dim() else mask.unsqueeze(-1)
        h = self.in_proj(torch.cat((x, mask.to(x.dtype)), dim=-1))
        shift = self.level_proj(self.level_emb(s)) + self.cond_proj(c)
        return h + shift.view(len(x), *[1] * (h.dim() - 2), -1)

    def forward(self, x: Tensor, s: Tensor, mask: Tensor, cond: Tensor | dict[str, Tensor] | None = None) -> Tensor:
        c = self.condition(cond, x)
        h = self.embed(x, s, mask, c) + frame_positions(x.shape[1], self.d_model).to(x)
        return self.out(self.transformer(h, c))


class VideoTokenInterpLevelDenoiser(InterpLevelDenoiser):
    """Token refiner: change of `(b, t, n, d)`; all tokens of all frames attend to each other."""

    def forward(  # type: ignore[override]
        self, x: Tensor, s: Tensor, mask: Tensor, cond: Tensor | None = None, shape: tuple[int, int] = (1, 1)
    ) -> Tensor:
        c = self.condition(cond, x)
        places = frame_positions(x.shape[1], self.d_model)[:, None] + space_positions(*shape, self.d_model)
        h = self.embed(x, s, mask, c) + places.to(x)
        return self.out(self.transformer(h.flatten(1, 2), c)).view_as(x)


class VideoTokenKeypointDenoiser(Conditioned):
    """Phase 1 on tokens: ε of keyframes `(b, K, n, d)` at their absolute times."""

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
        self.t_embed = mlp(d_model, d_model)
        self.cond_enc = TextEncoder(text_dim, d_cond)

    def forward(self, z: Tensor, t: Tensor, idx: Tensor, text: Tensor, frames: int, shape: tuple[int, int]) -> Tensor:
        c = self.cond_enc(text)
        places = frame_positions(frames, self.d_model)[idx][:, :, None] + space_positions(*shape, self.d_model)
        shift = self.t_embed(sinusoid(t, self.d_model).to(z)) + self.cond_proj(c)
        h = self.in_proj(z) + places.to(z) + shift[:, None, None]
        return self.out(self.transformer(h.flatten(1, 2), c)).view_as(z)


class KeypointDenoiser(Conditioned):
    """Phase 1 on flat keyframes `(b, K, d)`, known entries marked."""

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
        super().__init__(2 * data_dim + d_model // 2 + kp_feat_dim, data_dim, d_model, n_layers, n_heads, d_ff, d_cond)
        self.kp_feat_dim = kp_feat_dim
        self.t_embed = mlp(d_model, d_model)
        self.cond_enc = ConditionEncoder(d_cond, maze_channels)

    def forward(
        self, z: Tensor, t: Tensor, idx: Tensor, known: Tensor, frames: int, cond: dict[str, Tensor] | None = None
    ) -> Tensor:
        c = self.condition(cond, z)
        places = sinusoid(idx / max(frames - 1, 1), self.d_model // 2).to(z)
        features = z.new_zeros(*z.shape[:2], self.kp_feat_dim)
        h = self.in_proj(torch.cat((z, places, known.to(z.dtype), features), dim=-1))
        shift = self.t_embed(sinusoid(t, self.d_model).to(z)) + self.cond_proj(c)
        return self.out(self.transformer(h + shift[:, None], c))
