"""Configuration of the Waypoint port: the config file's fields, and the choices a right port may make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

AttentionBackend = Literal["sdpa", "math", "flex"]

# Fields of the config file that only training, the engine or the loader reads (spec A1).
UNREAD_FIELDS = frozenset(
    {
        "causal",
        "base_fps",
        "rope_impl",
        "mlp_gradient_checkpointing",
        "block_gradient_checkpointing",
        "ae_uri",
        "prompt_encoder_uri",
        "model_type",
    }
)


@dataclass(frozen=True)
class WaypointConfig:
    """One Waypoint checkpoint (spec A1). Field names are the config file's keys.

    `height` and `width` count tokens (after patching); the latent is [channels, height * ph, width * pw].
    Defaults are those of a field that the file leaves out.
    """

    d_model: int
    n_heads: int
    n_layers: int
    mlp_ratio: int
    channels: int
    height: int
    width: int
    tokens_per_frame: int
    n_frames: int
    local_window: int
    global_window: int
    n_buttons: int
    scheduler_sigmas: tuple[float, ...]
    n_kv_heads: int | None = None
    patch: tuple[int, int] = (1, 1)
    global_attn_period: int = 4
    global_attn_offset: int = 0
    global_pinned_dilation: int = 1
    value_residual: bool = False
    gated_attn: bool = False
    ctrl_conditioning: str | None = "mlp_fusion"
    ctrl_conditioning_period: int = 3
    ctrl_cond_dropout: float = 0.0
    prompt_conditioning: str | None = "cross_attention"
    prompt_conditioning_period: int = 3
    prompt_embedding_dim: int = 2048
    prompt_cond_dropout: float = 0.0
    noise_conditioning: str | None = "wan"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> WaypointConfig:
        """Read a config mapping; unknown keys are an error, keys that only an engine reads are dropped."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - UNREAD_FIELDS)
        if unknown:
            raise ValueError(f"Waypoint port: unknown config fields {unknown}")
        chosen = {name: value for name, value in values.items() if name in known}
        for name in ("patch", "scheduler_sigmas"):
            if name in chosen:
                chosen[name] = tuple(chosen[name])
        return cls(**chosen)

    def __post_init__(self) -> None:
        problems = []
        if self.value_residual:
            problems.append("value_residual is not implemented by this port")
        if self.d_model % self.n_heads or self.n_heads % self.kv_heads:
            problems.append("d_model must be a multiple of n_heads, and n_heads of n_kv_heads")
        if self.head_dim < 32 or self.head_dim % 16:
            problems.append(f"head_dim must be a multiple of 16 and at least 32, not {self.head_dim}")
        if self.tokens_per_frame != self.height * self.width:
            problems.append(f"tokens_per_frame {self.tokens_per_frame} is not height * width")
        if self.global_window % self.global_pinned_dilation:
            problems.append("global_window must be a multiple of global_pinned_dilation")
        if problems:
            raise ValueError("Waypoint port: " + "; ".join(problems))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of one latent frame."""
        return self.channels, self.height * self.patch[0], self.width * self.patch[1]

    def is_global(self, layer: int) -> bool:
        """Whether a layer attends over the dilated global window (spec A1, global_attn_period)."""
        return (layer - self.global_attn_offset % self.global_attn_period) % self.global_attn_period == 0

    def has_prompt(self, layer: int) -> bool:
        return self.prompt_conditioning is not None and layer % self.prompt_conditioning_period == 0

    def has_controls(self, layer: int) -> bool:
        return layer % self.ctrl_conditioning_period == 0

    def window(self, layer: int) -> tuple[int, int]:
        """(frames kept, dilation) of a layer's cache (spec A6)."""
        if self.is_global(layer):
            return self.global_window, self.global_pinned_dilation
        return self.local_window, 1


@dataclass(frozen=True)
class PortOptions:
    """Choices that leave the result unchanged up to rounding (spec C16), and the one stated limit of the port.

    rotary_angles: "exact" evaluates the closed formula at every call; "rounded" takes cosines and sines from
        tables rounded to bf16 when the port is built, as the reference's engine does (spec A8).
    cross_head_dim: head size of cross-attention; None takes the config's. The upstream port fixes it at 64.
    """

    attention_backend: AttentionBackend = "sdpa"
    query_chunk: int | None = None
    rotary_angles: Literal["exact", "rounded"] = "exact"
    rotary_positions: Literal["closed", "linspace"] = "closed"
    rotary_output: Literal["split", "interleaved"] = "split"
    merged_qkv: bool = False
    split_fusion: bool = False
    cache_freezes: bool = True
    cache_bucket: Literal["ceil", "floor"] = "ceil"
    cross_head_dim: int | None = None
