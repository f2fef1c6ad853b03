"""Waypoint world model in the port's layout (spec A5, B10): blocks, stack, and the model around them.

Precision: the residual stream, conditions and modulations are in the model's dtype; the noise embedding is fp32 inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import CrossAttention, GatedSelfAttention
from .cache import WaypointKVCache
from .config import PortOptions, WaypointConfig
from .layers import (
    CFG,
    MLP,
    AdaLayerNorm,
    CondHead,
    ControllerInputEmbedding,
    MLPFusion,
    ReplicatedLinear,
    RMSNorm,
    SplitFusion,
    fold_patches,
)
from .noise import NoiseEmbedding
from .rotary import Positions, Rotary

SHARED_CONDITIONING = ("wan", "dit_air")


class WaypointBlock(nn.Module):
    """One block: gated self-attention, prompt, controls, MLP; each added to the residual stream."""

    def __init__(
        self, config: WaypointConfig, layer: int, rotary: Rotary, shared: nn.ModuleList | None, options: PortOptions
    ) -> None:
        super().__init__()
        d_model = config.d_model
        self.attn = GatedSelfAttention(config, layer, rotary, options)
        self.mlp = MLP(d_model, d_model * config.mlp_ratio, d_model)
        self.cond_head = CondHead(d_model, bias=config.noise_conditioning == "wan", shared=shared)
        self.prompt_cross_attn = CrossAttention(config, options) if config.has_prompt(layer) else None
        self.ctrl_mlpfusion: MLPFusion | SplitFusion | None = MLPFusion(d_model) if config.has_controls(layer) else None
        self.attn_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.prompt_norm, self.prompt_emb_norm = RMSNorm(), RMSNorm()
        self.ctrl_norm, self.ctrl_emb_norm = RMSNorm(), RMSNorm()

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x * (1 + scale) + shift

    def add_prompt(self, x: Tensor, prompt_emb: Tensor | None, prompt_pad_mask: Tensor | None) -> Tensor:
        if self.prompt_cross_attn is None:
            return x
        return x + self.prompt_cross_attn(self.prompt_norm(x), self.prompt_emb_norm(prompt_emb), prompt_pad_mask)

    def add_controls(self, x: Tensor, ctrl_emb: Tensor) -> Tensor:
        if self.ctrl_mlpfusion is None:
            return x
        return x + self.ctrl_mlpfusion(self.ctrl_norm(x), self.ctrl_emb_norm(ctrl_emb))

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        ctrl_emb: Tensor,
        pos_emb: Positions,
        kv_cache: WaypointKVCache,
    ) -> Tensor:
        """x [B, T, D], cond and ctrl_emb [B, 1, D], prompt_emb [B, S, P] -> [B, T, D]."""
        scale0, shift0, gate0, scale1, shift1, gate1 = self.cond_head(cond)
        x = x + gate0 * self.attn(self.modulate(self.attn_norm(x), scale0, shift0), pos_emb, kv_cache)
        x = self.add_prompt(x, prompt_emb, prompt_pad_mask)
        x = self.add_controls(x, ctrl_emb)
        return x + gate1 * self.mlp(self.modulate(self.mlp_norm(x), scale1, shift1))


class WaypointTransformer(nn.Module):
    """The stack of blocks; the first block's conditioning matrices serve all when the config shares them."""

    def __init__(self, config: WaypointConfig, options: PortOptions) -> None:
        super().__init__()
        self.rotary = Rotary(config, options)
        self.blocks = nn.ModuleList()
        shared = None
        for layer in range(config.n_layers):
            self.blocks.append(WaypointBlock(config, layer, self.rotary, shared, options))
            if config.noise_conditioning in SHARED_CONDITIONING:
                shared = self.blocks[0].cond_head.cond_proj

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        ctrl_emb: Tensor,
        pos_emb: Positions,
        kv_cache: WaypointKVCache,
    ) -> Tensor:
        for block in self.blocks:
            x = block(x, cond, prompt_emb, prompt_pad_mask, ctrl_emb, pos_emb, kv_cache)
        return x


class WaypointWorldModel(nn.Module):
    """Velocity of one latent frame given its noise level, prompt, controls and the cached past."""

    def __init__(self, config: WaypointConfig, options: PortOptions | None = None) -> None:
        super().__init__()
        options = options or PortOptions()
        self.config = config
        d_model, patch, channels = config.d_model, config.patch, config.channels
        self.denoise_step_emb = NoiseEmbedding(d_model)
        self.ctrl_emb = ControllerInputEmbedding(config.n_buttons, d_model, config.mlp_ratio)
        self.ctrl_cfg = CFG(d_model, config.ctrl_cond_dropout) if config.ctrl_conditioning is not None else None
        self.prompt_cfg = None
        if config.prompt_conditioning is not None:
            self.prompt_cfg = CFG(config.prompt_embedding_dim, config.prompt_cond_dropout)
        self.transformer = WaypointTransformer(config, options)
        self.patchify = nn.Conv2d(channels, d_model, patch, stride=patch, bias=False)
        self.unpatchify = ReplicatedLinear(d_model, channels * patch[0] * patch[1], bias=True)
        self.out_norm = AdaLayerNorm(d_model)

    @property
    def dtype(self) -> torch.dtype:
        """The engine's dtype: that of every weight outside the noise embedding."""
        return self.patchify.weight.dtype

    def position_ids(self, frame_timestamp: Tensor) -> Positions:
        """Integer ids of the frame's tokens, row-major; frame_timestamp int64 [1, 1]."""
        idx = torch.arange(self.config.tokens_per_frame, device=frame_timestamp.device).unsqueeze(0)
        return {
            "t": frame_timestamp.expand_as(idx),
            "y": idx // self.config.width,
            "x": idx % self.config.width,
            "frame_t": int(frame_timestamp),
        }

    def embed_controls(self, mouse: Tensor, button: Tensor, scroll: Tensor) -> Tensor:
        emb = self.ctrl_emb(mouse, button, scroll)
        return emb if self.ctrl_cfg is None else self.ctrl_cfg(emb, None)

    def embed_prompt(self, prompt_emb: Tensor | None) -> Tensor | None:
        return prompt_emb if self.prompt_cfg is None else self.prompt_cfg(prompt_emb, None)

    def output(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """tokens [B, T, D] -> output vectors [B, T, C ph pw]."""
        out, _ = self.unpatchify(F.silu(self.out_norm(tokens, cond)))
        return out

    def fold(self, vectors: Tensor) -> Tensor:
        """[B, T, C ph pw] -> [B, C, h, w]."""
        return fold_patches(vectors, self.config.height, self.config.width, self.config.patch)

    def check(self, x: Tensor, sigma: Tensor) -> None:
        expected = (1, 1, *self.config.latent_shape)
        if tuple(x.shape) != expected or tuple(sigma.shape) != (1, 1):
            raise ValueError(
                f"Waypoint port: latent {tuple(x.shape)} and sigma {tuple(sigma.shape)}, expected {expected} and (1, 1)"
            )

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
        kv_cache: WaypointKVCache,
    ) -> Tensor:
        """x [1, 1, C, h, w], sigma [1, 1], timestamp int64 [1, 1], controls [1, 1, n] -> velocity like x."""
        self.check(x, sigma)
        cond = self.denoise_step_emb(sigma)
        ctrl_emb = self.embed_controls(mouse, button, scroll)
        tokens = rearrange(self.patchify(x[:, 0]), "b d h w -> b (h w) d")
        tokens = self.transformer(
            tokens,
            cond,
            self.embed_prompt(prompt_emb),
            prompt_pad_mask,
            ctrl_emb,
            self.position_ids(frame_timestamp),
            kv_cache,
        )
        return self.fold(self.output(tokens, cond)).unsqueeze(1)
