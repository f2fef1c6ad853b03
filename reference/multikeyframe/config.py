"""The configuration of a run and its checks (specification, section 1.1)."""

from dataclasses import dataclass
from pathlib import Path

VAE_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors")  # published, and converted (pickles are never read here)


@dataclass
class GenerationConfig:
    """`size` is "width*height"; None leaves a sampling value to the model (50 steps, shift 16); a seed < 0 means any.

    The output folder is made on construction, before anything is checked, as upstream does.
    """

    ckpt_dir: str | Path
    size: str = "1280*720"
    fps: int = 24
    sample_steps: int | None = None
    sample_shift: float | None = None
    sample_guide_scale: float | None = 5.0
    base_seed: int = -1
    offload_model: bool = False
    t5_cpu: bool = False
    output_dir: str | Path = "./outputs"

    def __post_init__(self) -> None:
        self.ckpt_dir, self.output_dir = Path(self.ckpt_dir), Path(self.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)

    def validate(self) -> tuple[bool, str]:
        """Check checkpoint, size and rate, in this order; the first problem is the message."""
        if not self.ckpt_dir.exists():
            return False, f"Checkpoint directory not found: {self.ckpt_dir}"
        if not (self.ckpt_dir / "config.json").exists():
            return False, "Required file not found: config.json"
        if not any((self.ckpt_dir / name).exists() for name in VAE_FILES):
            return False, f"Required file not found: {VAE_FILES[0]}"
        try:
            width, height = parse_size(self.size)
        except ValueError as error:
            return False, str(error)
        if width <= 0 or height <= 0:
            return False, f"Invalid size dimensions: {self.size}"
        if self.fps <= 0:
            return False, f"FPS must be positive: {self.fps}"
        return True, "Configuration is valid"

    @property
    def max_area(self) -> int:
        """Pixels that a frame may have; its shape comes from the keyframes (section 7)."""
        width, height = parse_size(self.size)
        return width * height


def parse_size(size: str | None) -> tuple[int, int]:
    """Width and height of "width*height"; blanks are allowed. Raises ValueError for anything else."""
    try:
        width, height = (int(part) for part in str(size).split("*"))
    except ValueError:
        raise ValueError(f"Invalid size format: {size}. Expected format: 'width*height'") from None
    return width, height
