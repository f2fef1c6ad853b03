"""Everything that one run depends on, and the checks that need no picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ported.multikeyframe.errors import InputError

METHODS = ("temporal_filter", "deflicker", "optical_flow", "none")
ENGINES = ("process", "serial", "ray")
DTYPES = ("float32", "bfloat16")
JOINTS = ("drop", "keep")
GRID = 16  # pixels that a latent patch covers
LONGEST = 4 * 1023 + 1  # the model's position table ends at 1024 latent frames
NEGATIVE_PROMPT = "镜头切换，镜头晃动，"  # scene cuts, shaking camera


@dataclass(frozen=True)
class Settings:
    """Options under their names on the command line and in YAML.

    keyframes: (path, seconds). size: "width*height" of a frame's area; the shape is that of the keyframes. base_seed:
    negative draws one and keeps it with the folder. joint: "drop" shows the keyframe that two segments share once,
    "keep" twice, as the original program. min_frames, max_frames: segments outside are refused. threads: of a worker
    on a CPU; results are equal to the bit for equal counts.
    """

    keyframes: tuple[tuple[str, float], ...]
    prompt: str
    ckpt_dir: str
    sub_prompts: tuple[str, ...] = ()
    negative_prompt: str = NEGATIVE_PROMPT
    size: str = "1280*720"
    fps: float = 24
    sample_steps: int = 50
    sample_shift: float = 16.0
    sample_guide_scale: float = 5.0
    base_seed: int = -1
    dtype: str = "bfloat16"
    num_gpus: int = 1
    gpu_ids: tuple[int, ...] = ()
    engine: str = "process"
    threads: int = 1
    offload_model: bool = False
    t5_cpu: bool = False
    joint: str = "drop"
    enable_smoothing: bool = True
    smoothing_method: str = "temporal_filter"
    output: str = "./output_final.mp4"
    output_dir: str = "./outputs"
    keep_intermediates: bool = False
    force_regenerate: bool = False
    resume_from: int | None = None
    min_frames: int = 5
    max_frames: int = LONGEST
    verbose: bool = False

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of `size`."""
        return parse_size(self.size)

    @property
    def slots(self) -> tuple[int, ...]:
        """Device of every worker: the given ids, else 0, 1, …"""
        return self.gpu_ids or tuple(range(self.num_gpus))

    @property
    def segments_folder(self) -> Path:
        """Where segments and their progress are."""
        return Path(self.output_dir).absolute() / "segments"

    @property
    def method(self) -> str:
        """How joints are smoothed; "none" when smoothing is off."""
        return self.smoothing_method if self.enable_smoothing else "none"


def parse_size(size: Any) -> tuple[int, int]:
    """Width and height of "width*height"; blanks are allowed."""
    try:
        width, height = (int(part) for part in str(size).split("*"))
    except ValueError:
        raise InputError(f"Invalid size format: {size}. Expected format: 'width*height'") from None
    if width <= 0 or height <= 0:
        raise InputError(f"Invalid size dimensions: {size}")
    if width % GRID or height % GRID:
        raise InputError(f"size {size}: width and height must be multiples of {GRID}")
    return width, height


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options as YAML or the command line give them. Raises InputError for the first wrong one."""
    known = {field.name for field in fields(Settings)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise InputError(f"unknown option {', '.join(map(str, unknown))}; known are {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("keyframes", "prompt", "ckpt_dir"):
        if not given.get(name):
            raise InputError(f"Required field missing: {name}")
    given["keyframes"] = read_keyframes(given["keyframes"])
    if isinstance(given.get("sub_prompts"), str):
        given["sub_prompts"] = [part.strip() for part in given["sub_prompts"].split("|")]
    if isinstance(given.get("gpu_ids"), str):
        given["gpu_ids"] = given["gpu_ids"].split(",")
    try:
        given["sub_prompts"] = tuple(str(part or "") for part in given.get("sub_prompts", ()))
        given["gpu_ids"] = tuple(int(part) for part in given.get("gpu_ids", ()))
    except (TypeError, ValueError):
        raise InputError("sub_prompts must be a list of texts and gpu_ids a list of numbers") from None
    return checked(Settings(**{name: typed(name, value) for name, value in given.items()}))


def typed(name: str, value: Any) -> Any:
    """A number or switch of the type that the option has."""
    kinds = {field.name: field.type for field in fields(Settings)}
    kind = kinds[name]
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{name}: expected true or false, got {value!r}")
    if kind in (int, float, int | None) and name != "keyframes":
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value) if kind is float else int(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{name}: expected a number, got {value!r}") from None
    return str(value) if kind is str else value


def read_keyframes(value: Any) -> tuple[tuple[str, float], ...]:
    """Keyframes from "path:seconds,path:seconds" or a list of [path, seconds]."""
    items: Sequence[Any] = value
    if isinstance(value, str):
        # the last colon divides, so that a drive letter may stand in a path
        items = [part.rpartition(":")[::2] for part in value.split(",")]
    found = []
    for item in items:
        try:
            path, seconds = item
            found.append((str(path).strip(), float(seconds)))
            if not found[-1][0]:
                raise ValueError
        except (TypeError, ValueError):
            shown = item if not isinstance(value, str) else ":".join(part for part in item if part)
            raise InputError(f"Invalid keyframe format: '{shown}'. Expected format: 'path:timestamp'") from None
    return tuple(found)


def checked(settings: Settings) -> Settings:
    """The settings, when every value is possible; InputError for the first that is not."""
    folder = Path(settings.ckpt_dir)
    if not folder.is_dir():
        raise InputError(f"Checkpoint directory not found: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"Required file not found: config.json (in {folder})")
    if not any((folder / f"Wan2.1_VAE.{suffix}").is_file() for suffix in ("safetensors", "pth")):
        raise InputError(f"Required file not found: Wan2.1_VAE.safetensors (in {folder})")
    parse_size(settings.size)
    if not (math.isfinite(settings.fps) and settings.fps > 0):
        raise InputError(f"FPS must be positive: {settings.fps:g}")
    for name, choices in (("smoothing_method", METHODS), ("engine", ENGINES), ("dtype", DTYPES), ("joint", JOINTS)):
        if getattr(settings, name) not in choices:
            raise InputError(f"{name}: {getattr(settings, name)!r} is not one of {', '.join(choices)}")
    for name, least in (("sample_steps", 1), ("num_gpus", 1), ("threads", 1), ("min_frames", 5)):
        if getattr(settings, name) < least:
            raise InputError(f"{name}: must be at least {least}, got {getattr(settings, name)}")
    for name in ("sample_shift", "sample_guide_scale"):
        if not math.isfinite(getattr(settings, name)):
            raise InputError(f"{name}: must be a finite number, got {getattr(settings, name)}")
    if settings.gpu_ids and len(settings.gpu_ids) != settings.num_gpus:
        raise InputError(f"gpu_ids names {len(settings.gpu_ids)} devices, num_gpus is {settings.num_gpus}")
    if len(set(settings.gpu_ids)) != len(settings.gpu_ids):
        raise InputError(f"gpu_ids: {list(settings.gpu_ids)} names a device twice; one worker runs on each")
    return settings
