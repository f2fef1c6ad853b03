"""Configurations of the four networks: field names are the official constructor arguments (spec A1, A10-A12)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")
ModelType = Literal["t2v", "i2v", "flf2v"]


def _from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build from a mapping such as a parsed `config.json`; lists become tuples.

    Keys that begin with an underscore (`_class_name`, `_diffusers_version` of the official checkpoint folders) are
    provenance, not configuration, and are skipped.

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
class DiTConfig:
    """The diffusion transformer (spec A1).

    `clip_dim` and `clip_tokens` are constants upstream (1280 and 257); they are fields so that tiny models exist.
    """

    model_type: ModelType
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16  # latent channels; 36 = 16 + 4 mask + 16 condition for i2v and flf2v
    out_dim: int = 16
    freq_dim: int = 256  # width of the time sinusoid
    text_dim: int = 4096
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    window_size: tuple[int, int] = (-1, -1)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    clip_dim: int = 1280
    clip_tokens: int = 257  # tokens of one image

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        problems = []
        if self.model_type not in ("t2v", "i2v", "flf2v"):
            problems.append(f"model_type {self.model_type!r} is not one of t2v, i2v, flf2v")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            problems.append(f"dim {self.dim} does not split into {self.num_heads} heads of even width")
        if self.freq_dim % 2:
            problems.append(f"freq_dim {self.freq_dim} is odd")
        if tuple(self.window_size) != (-1, -1):
            problems.append(f"window_size {self.window_size}: every real model attends globally, (-1, -1)")
        if not (self.qk_norm and self.cross_attn_norm):
            problems.append("qk_norm and cross_attn_norm are True in every real model; without them is not specified")
        if problems:
            raise ValueError("DiTConfig: " + "; ".join(problems))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def has_image(self) -> bool:
        """Whether image tokens stand in front of the text tokens (i2v, flf2v)."""
        return self.model_type != "t2v"


LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """The causal 3D VAE (spec A10). `temperal_downsample` is spelt as upstream; the decoder uses it reversed."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = LATENT_MEAN
    latents_std: tuple[float, ...] = LATENT_STD

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        problems = []
        if self.attn_scales:
            problems.append(f"attn_scales {self.attn_scales}: attention outside the middle is not specified")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            problems.append("temperal_downsample needs one entry less than dim_mult")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            problems.append(f"latents_mean and latents_std need {self.z_dim} entries each (z_dim)")
        if problems:
            raise ValueError("VAEConfig: " + "; ".join(problems))


@dataclass(frozen=True)
class T5Config:
    """The UMT5 encoder (spec A11)."""

    vocab: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_dist: int = 128
    shared_pos: bool = False

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        if self.shared_pos:
            raise ValueError("T5Config: shared_pos=True is the T5 layout; in UMT5 each block owns its position table")
        if self.dim_attn % self.num_heads:
            raise ValueError(f"T5Config: dim_attn {self.dim_attn} does not split into {self.num_heads} heads")


@dataclass(frozen=True)
class CLIPConfig:
    """The vision tower of open-clip XLM-RoBERTa-large ViT-H/14 (spec A12). `out_dim` sizes the unused `head`."""

    image_size: int = 224
    patch_size: int = 14
    dim: int = 1280
    mlp_ratio: int = 4
    out_dim: int = 1024
    num_heads: int = 16
    num_layers: int = 32
    activation: str = "gelu"  # exact (erf)
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    from_dict = classmethod(_from_dict)

    def __post_init__(self) -> None:
        if self.activation != "gelu":
            raise ValueError(f"CLIPConfig: activation {self.activation!r}; only 'gelu' (exact) is specified")
        if self.image_size % self.patch_size or self.dim % self.num_heads:
            raise ValueError("CLIPConfig: image_size must divide by patch_size and dim by num_heads")

    @property
    def tokens(self) -> int:
        """Tokens of one image: patches and the class token (257 for 224/14)."""
        return (self.image_size // self.patch_size) ** 2 + 1


_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
DIT_CONFIGS: dict[str, DiTConfig] = {
    "T2V-1.3B": DiTConfig(model_type="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "T2V-14B": DiTConfig(model_type="t2v", **_14B),
    "I2V-14B": DiTConfig(model_type="i2v", in_dim=36, **_14B),
    "FLF2V-14B-720P": DiTConfig(model_type="flf2v", in_dim=36, **_14B),
}
