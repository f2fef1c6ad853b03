"""Configurations of the networks and of a pipeline call; field names are the official ones (spec 1.1, 1.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


def _from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build from a mapping such as a parsed `config.json`; lists become tuples, keys with an underscore are skipped.

    Errors: ValueError that lists every unknown key, or every missing one.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if not k.startswith("_")}
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"{cls.__name__}: unknown keys {unknown}; known keys are {sorted(known)}")
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class UNetConfig:
    """Both UNets (spec 1.2, 3). `attention_head_dim` is, as upstream, the NUMBER of heads.

    `cross_attention_dim`, `motion_heads`, `max_len` and the two switches matter to the denoising network only.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    cross_attention_dim: int = 384
    motion_heads: int = 8
    max_len: int = 32  # rows of the table of positions in the motion modules
    use_motion_module: bool = True
    use_inflated_groupnorm: bool = True
    in_channels: int = 4
    out_channels: int = 4

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        problems = []
        for width in self.block_out_channels:
            if width % self.attention_head_dim:
                problems.append(f"width {width} does not split into {self.attention_head_dim} heads")
            if width % self.norm_num_groups:
                problems.append(f"width {width} does not split into {self.norm_num_groups} groups")
            if self.use_motion_module and (width % MOTION_GROUPS or width % self.motion_heads):
                problems.append(f"width {width}: motion modules need {MOTION_GROUPS} groups, {self.motion_heads} heads")
        if problems:
            raise ValueError("UNetConfig: " + "; ".join(problems))

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def time_dim(self) -> int:
        return 4 * self.block_out_channels[0]


MOTION_GROUPS = 32  # a literal in the motion modules, whatever `norm_num_groups` says (spec 5)


@dataclass(frozen=True)
class PoseEncoderConfig:
    """The pose encoder (spec 6.1)."""

    conditioning_embedding_channels: int = 320
    conditioning_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    from_dict = classmethod(_from_dict)


@dataclass(frozen=True)
class VAEConfig:
    """The SD image VAE (spec 6.5); `scaling_factor` 0.18215."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    in_channels: int = 3
    scaling_factor: float = 0.18215

    from_dict = classmethod(_from_dict)

    @property
    def stride(self) -> int:
        """Pixels of one latent position."""
        return 1 << (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class WhisperConfig:
    """The encoder of Whisper tiny (spec 6.3)."""

    n_mels: int = 80
    n_audio_ctx: int = 1500
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4

    from_dict = classmethod(_from_dict)


@dataclass(frozen=True)
class SchedulerConfig:
    """DDIM (spec 7). `steps_offset` has no effect with trailing time steps."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"
    num_train_timesteps: int = 1000
    clip_sample: bool = False
    thresholding: bool = False
    steps_offset: int = 1
    prediction_type: str = "v_prediction"
    rescale_betas_zero_snr: bool = True
    timestep_spacing: str = "trailing"
    set_alpha_to_one: bool = True
    eta: float = 0.0

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        wanted = {
            "beta_schedule": "linear",
            "clip_sample": False,
            "thresholding": False,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
            "eta": 0.0,
        }
        wrong = [f"{k}={getattr(self, k)!r} (only {v!r})" for k, v in wanted.items() if getattr(self, k) != v]
        if wrong:
            raise ValueError("SchedulerConfig: not specified: " + ", ".join(wrong))


@dataclass(frozen=True)
class Variant:
    """One of the two official pipelines with its defaults (spec 1.1)."""

    accelerated: bool
    steps: int
    guidance_scale: float
    seed: int
    width: int = 768
    height: int = 768
    length: int = 240
    context_frames: int = 12
    context_overlap: int = 3
    fps: int = 24


VARIANTS = {
    "standard": Variant(accelerated=False, steps=30, guidance_scale=2.5, seed=3407),
    "acc": Variant(accelerated=True, steps=6, guidance_scale=1.0, seed=420),
}
REAL_UNET = UNetConfig()
REAL_POSE_ENCODER = PoseEncoderConfig()
REAL_VAE = VAEConfig()
REAL_WHISPER = WhisperConfig()
CONFIGS: dict[str, Any] = {
    "reference_unet": REAL_UNET,
    "denoising_unet": REAL_UNET,
    "pose_encoder": REAL_POSE_ENCODER,
    "vae": REAL_VAE,
    "audio_model": REAL_WHISPER,
    "scheduler": SchedulerConfig(),
}
