"""Configuration of the Waypoint-1 world model (spec waypoint, section 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Config:
    """Hold every key of the model's YAML file; the field names are the keys.

    Sizes have no default. Where the specification names a default it is used (`n_kv_heads`, `patch`,
    `global_attn_offset`, `value_residual`, `gated_attn`); the other optional fields default to the Waypoint-1-Small
    value.
    """

    d_model: int
    n_heads: int
    n_layers: int
    mlp_ratio: int
    channels: int  # latent channels C
    height: int  # token grid, AFTER patching
    width: int
    tokens_per_frame: int  # T = height * width
    n_frames: int  # time rows of the rotary table: the hard limit on the frame index
    local_window: int  # frames kept by a local layer
    global_window: int  # frames spanned by a global layer
    global_attn_period: int
    global_pinned_dilation: int  # a global layer keeps every n-th frame only
    n_buttons: int
    n_kv_heads: int | None = None  # None: n_heads
    patch: tuple[int, int] = (1, 1)  # (ph, pw); the latent is [C, height*ph, width*pw]
    global_attn_offset: int = 0  # may be negative
    value_residual: bool = False
    gated_attn: bool = False
    ctrl_conditioning: str | None = "mlp_fusion"  # None removes only the unused `ctrl_cfg`
    ctrl_conditioning_period: int = 3
    ctrl_cond_dropout: float = 0.0
    prompt_conditioning: str | None = "cross_attention"  # None: no prompt path at all
    prompt_conditioning_period: int = 3
    prompt_embedding_dim: int = 2048
    prompt_cond_dropout: float = 0.0
    noise_conditioning: str | None = "wan"  # "wan": shared + bias; "dit_air": shared; anything else: one set a layer
    scheduler_sigmas: tuple[float, ...] = (1.0, 0.8609585762023926, 0.729332447052002, 0.3205108940601349, 0.0)
    causal: bool = True  # not read by the model
    base_fps: int = 60  # not read
    rope_impl: str = "ortho"  # not read
    mlp_gradient_checkpointing: bool = True  # training only
    block_gradient_checkpointing: bool = True  # training only
    ae_uri: str | None = None  # engine only
    prompt_encoder_uri: str = "google/umt5-xl"  # engine only

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        # YAML and JSON give lists; tuples keep the record frozen and hashable.
        object.__setattr__(self, "patch", tuple(self.patch))
        object.__setattr__(self, "scheduler_sigmas", tuple(float(s) for s in self.scheduler_sigmas))
        problems = _problems(self)
        if problems:
            raise ValueError("invalid Waypoint config: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a config from a mapping; unknown and missing keys raise one ValueError that lists them."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values)
        if unknown or missing:
            parts = [f"unknown keys {unknown}"] * bool(unknown) + [f"missing keys {missing}"] * bool(missing)
            raise ValueError(f"cannot build a Waypoint config: {'; '.join(parts)}. Known keys: {sorted(fields)}")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read the published YAML file."""
        return cls.from_dict(yaml.safe_load(Path(path).read_text()))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape [C, h, w] of one latent frame."""
        return self.channels, self.height * self.patch[0], self.width * self.patch[1]

    def is_global(self, layer: int) -> bool:
        """Tell whether `layer` has the long, dilated window; Python's modulo makes negative offsets valid."""
        offset = self.global_attn_offset % self.global_attn_period
        return (layer - offset) % self.global_attn_period == 0

    def has_prompt(self, layer: int) -> bool:
        """Tell whether `layer` has a prompt cross-attention."""
        return self.prompt_conditioning is not None and layer % self.prompt_conditioning_period == 0

    def has_ctrl(self, layer: int) -> bool:
        """Tell whether `layer` has a controller fusion: independent of `ctrl_conditioning`."""
        return layer % self.ctrl_conditioning_period == 0


def _problems(c: Config) -> list[str]:
    """List what is wrong with a config in words."""
    checks = {
        f"tokens_per_frame {c.tokens_per_frame} != height*width {c.height * c.width}": c.tokens_per_frame
        == c.height * c.width,
        f"n_heads {c.n_heads} does not divide d_model {c.d_model}": c.d_model % c.n_heads == 0,
        f"n_kv_heads {c.n_kv_heads} does not divide n_heads {c.n_heads}": c.n_heads % c.n_kv_heads == 0,
        f"head_dim {c.head_dim} must be a multiple of 16 and at least 32": c.head_dim % 16 == 0 and c.head_dim >= 32,
        f"global_pinned_dilation {c.global_pinned_dilation} does not divide global_window {c.global_window}": (
            c.global_window % c.global_pinned_dilation == 0
        ),
        f"patch {c.patch} must have two entries": len(c.patch) == 2,
        f"ctrl_conditioning {c.ctrl_conditioning!r} must be 'mlp_fusion' or None": c.ctrl_conditioning
        in ("mlp_fusion", None),
        f"prompt_conditioning {c.prompt_conditioning!r} must be 'cross_attention' or None": c.prompt_conditioning
        in ("cross_attention", None),
        f"prompt_embedding_dim {c.prompt_embedding_dim} is not a multiple of head_dim {c.head_dim}": (
            c.prompt_conditioning is None or c.prompt_embedding_dim % c.head_dim == 0
        ),
        f"scheduler_sigmas {c.scheduler_sigmas} needs two entries at least": len(c.scheduler_sigmas) >= 2,
    }
    return [text for text, holds in checks.items() if not holds]


WAYPOINT_1_SMALL = Config(
    d_model=2560,
    n_heads=40,
    n_kv_heads=20,
    n_layers=22,
    mlp_ratio=5,
    channels=16,
    height=16,
    width=16,
    patch=(2, 2),
    tokens_per_frame=256,
    n_frames=4096,
    local_window=16,
    global_window=128,
    global_attn_period=4,
    global_attn_offset=0,
    global_pinned_dilation=8,
    value_residual=False,
    gated_attn=True,
    n_buttons=256,
)
