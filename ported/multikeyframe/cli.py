"""Command line: options over YAML over defaults. Status 0 done, 1 a segment failed, 2 wrong input."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ported.multikeyframe.errors import GenerationError, InputError
from ported.multikeyframe.settings import DTYPES, ENGINES, JOINTS, METHODS, Settings, make_settings

TEXTS = ("config", "keyframes", "prompt", "sub_prompts", "negative_prompt", "ckpt_dir", "size", "gpu_ids")
PATHS = ("output", "output_dir")
NUMBERS = ("fps", "sample_steps", "sample_shift", "sample_guide_scale", "base_seed", "num_gpus", "threads")
LIMITS = ("resume_from", "min_frames", "max_frames")
SWITCHES = ("offload_model", "t5_cpu", "keep_intermediates", "force_regenerate")
CHOICES = {"smoothing_method": METHODS, "engine": ENGINES, "dtype": DTYPES, "joint": JOINTS}


def make_parser() -> argparse.ArgumentParser:
    """Options; one that is not given leaves no trace, so that YAML keeps its say."""
    parser = argparse.ArgumentParser(
        prog="python -m ported.multikeyframe",
        description="Long videos from keyframes.",
        argument_default=argparse.SUPPRESS,
    )
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in (*TEXTS, *PATHS, *NUMBERS, *LIMITS):
        known = defaults.get(name)
        shown = f"default {known}" if isinstance(known, (str, int, float)) and known != "" else None
        parser.add_argument(f"--{name}", help=shown)
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    parser.add_argument("--enable_smoothing", action="store_true")
    parser.add_argument("--no_smoothing", dest="enable_smoothing", action="store_false")
    parser.add_argument("--verbose", "-v", action="store_true")
    for name, choices in CHOICES.items():
        parser.add_argument(f"--{name}", choices=choices)
    return parser


def read_yaml(path: str) -> dict[str, Any]:
    """Options of a YAML file. Raises InputError when it is missing or no mapping."""
    import yaml

    try:
        stored = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(stored, dict):
        raise InputError(f"config {path}: expected options as 'name: value' lines")
    return stored


def read_settings(argv: Sequence[str]) -> Settings:
    """Settings of a command line: given options stand over the YAML file's."""
    given = vars(make_parser().parse_args(list(argv)))
    path = given.pop("config", None)
    return make_settings({**(read_yaml(path) if path else {}), **given})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the generator; one line for every finished segment, one for a problem."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv)
        from ported.multikeyframe.pipeline import run

        result = run(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except GenerationError as error:
        print(f"error: {error}; run again to continue", file=sys.stderr)
        return 1
    seconds = result.frames / settings.fps
    print(f"{result.output}: {result.frames} frames, {seconds:.2f} s, {len(result.made)} segments made now")
    return 0
