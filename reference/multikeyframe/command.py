"""The command that upstream runs for one segment (specification, section 2.3); kept as a record of its arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import GenerationConfig
from .plan import SegmentConfig, segment_seed


def build_command(
    config: GenerationConfig, segment: SegmentConfig, output: Path, override: Mapping[str, Any] | None = None
) -> list[str]:
    """Arguments of the model script, without the interpreter."""
    command = ["generate.py", "--task", "flf2v-14B", "--ckpt_dir", str(config.ckpt_dir)]
    command += ["--first_frame", str(segment.first_frame), "--last_frame", str(segment.last_frame)]
    command += ["--frame_num", str(segment.num_frames), "--prompt", segment.full_prompt, "--size", config.size]
    command += ["--save_file", str(output)]
    for name in ("sample_steps", "sample_shift", "sample_guide_scale"):
        value = getattr(config, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    if config.base_seed >= 0:
        command += ["--base_seed", str(segment_seed(config.base_seed, segment.segment_id))]
    if config.offload_model:
        command += ["--offload_model", "True"]
    if config.t5_cpu:
        command.append("--t5_cpu")
    return with_overrides(command, override or {})


def with_overrides(command: list[str], override: Mapping[str, Any]) -> list[str]:
    """Replace options: an existing one goes with the item behind it, whatever that is (M26), the new one is appended.

    True adds the bare option, False nothing. Raises IndexError for a flag at the end of the command.
    """
    command = list(command)
    for name, value in override.items():
        option = f"--{name}"
        if option in command:
            at = command.index(option)
            command.pop(at)
            command.pop(at)
        if value is True:
            command.append(option)
        elif value is not False:
            command += [option, str(value)]
    return command
