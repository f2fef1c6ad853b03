"""Network configurations, and what a caller may ask for (spec 1.1, 1.2, 10.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

NonFinitePolicy = Literal["fail", "clean", "ignore"]  # "ignore": the published server, never a client's choice
Config = Mapping[str, Any]

REAL_UNET: Config = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,  # the NUMBER of heads
    "norm_num_groups": 32,
    "cross_attention_dim": 384,
    "motion_heads": 8,
    "max_len": 32,
}
REAL_POSE_ENCODER: Config = {"block_out_channels": (16, 32, 96, 256), "conditioning_embedding_channels": 320}
REAL_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
}
REAL_AUDIO: Config = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 384,
    "n_audio_head": 6,
    "n_audio_layer": 4,
}
SCHEDULER: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class Limits:
    """What a service allows; see `Settings.check`."""

    pixels: int = 1024 * 1024
    side: int = 64  # the smallest width or height
    length: int = 1200
    steps: int = 100


@dataclass(frozen=True)
class Settings:
    """One request. `bank_dtype` None: float16 as upstream, unless the networks are bfloat16, which cannot read it.

    `length` None: as long as audio and poses are. `seed` None: drawn. `nonfinite`: what to do when a tensor is not finite:
    `fail` with the name of the first operation that made it, or `clean` and say so in the result.
    """

    width: int = 768
    height: int = 768
    length: int | None = None
    steps: int = 6
    cfg: float = 1.0
    fps: int = 24
    seed: int | None = 420
    context_frames: int = 12
    context_overlap: int = 3
    nonfinite: NonFinitePolicy = "fail"
    accelerated: bool = True
    bank_dtype: torch.dtype | None = None

    def check(self, limits: Limits | None = None) -> None:
        """Raise ValueError that names every field out of its range, in one line."""
        limits = limits or Limits()
        wrong = []
        if self.width % 8 or self.height % 8:
            wrong.append(f"width {self.width} and height {self.height} must be multiples of 8")
        if min(self.width, self.height) < limits.side or self.width * self.height > limits.pixels:
            wrong.append(
                f"size {self.width}x{self.height} is outside {limits.side} pixels a side and {limits.pixels} in all"
            )
        if self.length is not None and not 0 < self.length <= limits.length:
            wrong.append(f"length {self.length} is not between 1 and {limits.length}")
        if not 0 < self.steps <= limits.steps:
            wrong.append(f"steps {self.steps} is not between 1 and {limits.steps}")
        if not 0 <= self.cfg <= 20:  # also refuses NaN
            wrong.append(f"cfg {self.cfg} is not between 0 and 20")
        if not 1 <= self.fps <= 60:
            wrong.append(f"fps {self.fps} is not between 1 and 60")
        if not 2 <= self.context_frames <= 32 or not 0 <= self.context_overlap < self.context_frames:
            wrong.append(f"windows of {self.context_frames} frames with an overlap of {self.context_overlap}")
        if self.nonfinite not in ("fail", "clean"):
            wrong.append(f"nonfinite {self.nonfinite!r} is not fail or clean")
        if wrong:
            raise ValueError("settings: " + "; ".join(wrong))


def settings_from_fields(given: Mapping[str, Any], defaults: Settings | None = None) -> Settings:
    """Read the settings out of the fields of a request, whichever part of it they came in.

    Errors: ValueError that names an unknown field or one whose value cannot be read as its type.
    """
    defaults = defaults or Settings()
    kinds = {"cfg": float, "nonfinite": str, "accelerated": bool}
    known = {f.name for f in fields(Settings)} - {"bank_dtype"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values[name] = kinds.get(name, int)(value)
        except (TypeError, ValueError):
            raise ValueError(f"field {name}: {value!r} is not a number of the right kind") from None
    return Settings(**({f.name: getattr(defaults, f.name) for f in fields(Settings)} | values))


@dataclass(frozen=True)
class Behaviour:
    """How the server treats its inputs: corrected, or as in one of its two published states (spec 10.1).

    quantise: nothing, or the denoiser; order: where the int8 scale is applied; `poses`: what happens to a drawing that does not fit;
    ref_width: width at which poses are drawn (None: the smaller side of the request).
    """

    quantise: Literal["none", "denoiser"] = "none"
    order: Literal["after", "before", "fp32"] = "fp32"
    poses: Literal["crop", "skip", "clamp"] = "crop"
    ref_width: int | None = 800
    resize_first: bool = False
    default_seed: int | None = None
    nonfinite: Literal["request", "ignore", "clean"] = "request"
    guarded_cast: bool = True
    smallest_file: int = 0
    silent_on_error: bool = False
    faults: tuple[str, ...] = field(default=())  # switches of `ported.echomimic.faults` that make the rest of the state


CORRECT = Behaviour()
STATE_A = Behaviour(
    quantise="denoiser",
    order="after",
    poses="skip",
    ref_width=None,
    default_seed=42,
    nonfinite="ignore",
    guarded_cast=False,
    faults=("int8_fp16_scale_after", "quantised_wrong_network", "pose_frame_skipped", "pose_ref_w"),
)
STATE_B = Behaviour(
    poses="clamp",
    ref_width=None,
    resize_first=True,
    default_seed=42,
    nonfinite="clean",
    smallest_file=1000,
    silent_on_error=True,
    faults=(
        "pose_bounds_clamped",
        "pose_ref_w",
        "ref_resize_twice",
        "nan_cleaned_to_zero",
        "size_check_passes_black",
        "mux_failed_silently",
    ),
)
STATES = {"A": STATE_A, "B": STATE_B}
