"""Blocks and the world model (spec waypoint, sections 2 and 5).

`WorldModel` maps a noisy latent frame, its noise level, the controls, the prompt and the cached history to the
velocity. Precision: the residual stream and all modulation stay in the dtype of the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from reference.waypoint.attention import Attn, CrossAttention
from reference.waypoint.cache import StaticKVCache
from reference.waypoint.config import Config
from reference.waypoint.layers import (
    CFG,
    MLP,
    AdaLN,
    CondHead,
    ControllerInputEmbedding,
    MLPFusion,
    NoiseConditioner,
    ada_gate,
    ada_rmsnorm,
    rms,
)
from reference.waypoint.rope import OrthoRope, PositionIds


class WorldDiTBlock(nn.Module):
    """Run self-attention, prompt cross-attention, controller fusion and MLP on the residual stream."""

    def __init__(self, config: Config, layer: int, rope: OrthoRope) -> None:
        super().__init__()
        dim = config.d_model
        self.attn = Attn(config, layer, rope)
        self.mlp = MLP(dim, dim * config.mlp_ratio, dim)
        self.cond_head = CondHead(dim, config.noise_conditioning)
        self.prompt_cross_attn = (
            CrossAttention(dim, config.prompt_embedding_dim, config.head_dim) if config.has_prompt(layer) else None
        )
        self.ctrl_mlpfusion = MLPFusion(dim) if config.has_ctrl(layer) else None

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        ctrl_emb: Tensor,
        pos_ids: PositionIds,
        v1: Tensor | None,
        kv_cache: StaticKVCache,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new x [B,T,D] and v1; cond [B,N,D], prompt_emb [B,S,P], ctrl_emb [B,N,D]."""
        s0, b0, g0, s1, b1, g1 = self.cond_head(cond)
        attended, v1 = self.attn(ada_rmsnorm(x, s0, b0), pos_ids, v1, kv_cache)
        x = x + ada_gate(attended, g0)
        if self.prompt_cross_attn is not None:
            x = x + self.prompt_cross_attn(rms(x), rms(prompt_emb), prompt_pad_mask)
        if self.ctrl_mlpfusion is not None:
            x = x + self.ctrl_mlpfusion(rms(x), rms(ctrl_emb))
        x = x + ada_gate(self.mlp(ada_rmsnorm(x, s1, b1)), g1)
        return x, v1


class WorldDiT(nn.Module):
    """Stack the blocks; they share one rotary object and, for "wan" and "dit_air", one set of condition projections."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        rope = OrthoRope(config)
        self.blocks = nn.ModuleList(WorldDiTBlock(config, i, rope) for i in range(config.n_layers))
        if config.noise_conditioning in ("wan", "dit_air"):
            first = self.blocks[0].cond_head.cond_proj
            for block in self.blocks[1:]:
                for mine, shared in zip(block.cond_head.cond_proj, first, strict=True):
                    mine.weight = shared.weight

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        ctrl_emb: Tensor,
        pos_ids: PositionIds,
        kv_cache: StaticKVCache,
    ) -> Tensor:
        v1 = None
        for block in self.blocks:
            x, v1 = block(x, cond, prompt_emb, prompt_pad_mask, ctrl_emb, pos_ids, v1, kv_cache)
        return x


class WorldModel(nn.Module):
    """Predict the velocity of one latent frame.

    `scheduler_sigmas` is a buffer so that the cast to the engine dtype rounds the schedule once, at build time.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dim, (ph, pw) = config.d_model, config.patch
        self.denoise_step_emb = NoiseConditioner(dim)
        self.ctrl_emb = ControllerInputEmbedding(config)
        if config.ctrl_conditioning is not None:
            self.ctrl_cfg = CFG(dim, config.ctrl_cond_dropout)
        if config.prompt_conditioning is not None:
            self.prompt_cfg = CFG(config.prompt_embedding_dim, config.prompt_cond_dropout)
        self.transformer = WorldDiT(config)
        self.patchify = nn.Conv2d(config.channels, dim, (ph, pw), stride=(ph, pw), bias=False)
        self.unpatchify = nn.Linear(dim, config.channels * ph * pw)
        self.out_norm = AdaLN(dim)
        self.register_buffer("scheduler_sigmas", torch.tensor(config.scheduler_sigmas), persistent=False)
        token = torch.arange(config.tokens_per_frame)
        self.register_buffer("y_pos", token // config.width, persistent=False)
        self.register_buffer("x_pos", token % config.width, persistent=False)

    def position_ids(self, frame_timestamp: Tensor) -> PositionIds:
        """Give every token of the frame its (t, y, x); frame_timestamp int64 [B, 1]."""
        t = frame_timestamp.expand(-1, self.config.tokens_per_frame)
        return PositionIds(t, self.y_pos.expand_as(t), self.x_pos.expand_as(t))

    def unpatch(self, tokens: Tensor) -> Tensor:
        """Turn tokens [B, T, C*ph*pw], ordered (c, ph, pw), into a latent [B, 1, C, h, w]."""
        c, (ph, pw) = self.config, self.config.patch
        pattern = "b (n hp wp) (c ph pw) -> b n c (hp ph) (wp pw)"
        return rearrange(tokens, pattern, n=1, hp=c.height, wp=c.width, ph=ph, pw=pw)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        frame_timestamp: Tensor,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        mouse: Tensor,
        button: Tensor,
        scroll: Tensor,
        kv_cache: StaticKVCache,
    ) -> Tensor:
        """Return the velocity v, like x.

        x [1,1,C,h,w]; sigma [1,1] in the engine dtype; frame_timestamp [1,1] int64; prompt_emb [1,S,P]; prompt_pad_mask
        [1,S], True on padding, ignored; mouse [1,1,2]; button [1,1,n_buttons]; scroll [1,1,1].
        """
        expected = (1, 1, *self.config.latent_shape)
        if tuple(x.shape) != expected:
            raise ValueError(f"WorldModel takes one frame of one sample: x must be {expected}, got {tuple(x.shape)}")
        if self.config.prompt_conditioning is not None and prompt_emb is None:
            raise ValueError("this configuration has prompt cross-attention: prompt_emb is needed")
        cond = self.denoise_step_emb(sigma)
        ctrl_emb = self.ctrl_emb(mouse, button, scroll)
        pos_ids = self.position_ids(frame_timestamp)
        tokens = rearrange(self.patchify(x[:, 0]), "b d hp wp -> b (hp wp) d")
        tokens = self.transformer(tokens, cond, prompt_emb, prompt_pad_mask, ctrl_emb, pos_ids, kv_cache)
        tokens = F.silu(self.out_norm(tokens, cond))
        return self.unpatch(self.unpatchify(tokens))
