"""Command line and YAML merged into one set of options (specification, section 6)."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

# The table with which the merge tells a given option from an omitted one; options outside it compare against None.
DEFAULTS = {
    "size": "1280*720",
    "fps": 24,
    "sample_guide_scale": 5.0,
    "base_seed": -1,
    "num_gpus": 1,
    "smoothing_method": "temporal_filter",
    "output": "./output_final.mp4",
    "output_dir": "./outputs",
}
REQUIRED = ("keyframes", "prompt", "ckpt_dir")
NUMBERS = {"fps": int, "sample_steps": int, "sample_shift": float, "sample_guide_scale": float, "base_seed": int}


def make_parser() -> argparse.ArgumentParser:
    """Options of the command line tool."""
    parser = argparse.ArgumentParser()
    for name in ("config", "keyframes", "prompt", "sub_prompts", "ckpt_dir", "size", "gpu_ids", "output", "output_dir"):
        parser.add_argument(f"--{name}", default=DEFAULTS.get(name))
    for name, kind in {**NUMBERS, "num_gpus": int, "resume_from": int}.items():
        parser.add_argument(f"--{name}", type=kind, default=DEFAULTS.get(name))
    parser.add_argument(
        "--smoothing_method", choices=["temporal_filter", "optical_flow", "none"], default="temporal_filter"
    )
    parser.add_argument("--enable_smoothing", action="store_true", default=True)
    for name in ("offload_model", "t5_cpu", "no_smoothing", "keep_intermediates", "force_regenerate"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--verbose", "-v", action="store_true")
    return parser


def merge(stored: Mapping[str, Any], parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a YAML file under those of the command line, by upstream's rule (M17, M18).

    A parsed value is taken when the file lacks the key, or when it differs from the table of defaults.
    """
    merged = dict(stored)
    for name, value in parsed.items():
        if name == "config":
            continue
        if name == "no_smoothing" and value:
            merged["enable_smoothing"] = False
        elif value is not None and (name not in stored or value != DEFAULTS.get(name)):
            merged[name] = value
    if parsed.get("no_smoothing"):
        merged["enable_smoothing"] = False
    return merged


def parse_keyframes(text: str) -> list[tuple[str, float]]:
    """`p:t,p:t` -> (path, seconds). Raises ValueError for an item with another number of colons."""
    found = []
    for item in text.split(","):
        parts = item.split(":")
        if len(parts) != 2:
            raise ValueError(f"Invalid keyframe format: '{item}'. Expected format: 'path:timestamp'")
        found.append((parts[0].strip(), float(parts[1].strip())))
    return found


def run_arguments(merged: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the configuration and of the run. Raises ValueError for a missing or malformed option."""
    for name in REQUIRED:
        if not merged.get(name):
            raise ValueError(f"Required field missing: {name}")
    keyframes, subs, ids = merged["keyframes"], merged.get("sub_prompts"), merged.get("gpu_ids")
    names = ("ckpt_dir", "size", *NUMBERS, "offload_model", "t5_cpu", "output_dir")
    config = {name: merged.get(name) for name in names}
    run = {
        "keyframes": parse_keyframes(keyframes) if isinstance(keyframes, str) else [tuple(pair) for pair in keyframes],
        "global_prompt": merged["prompt"],
        "sub_prompts": [part.strip() for part in subs.split("|")] if isinstance(subs, str) else subs,
        "output_path": merged["output"],
        "num_gpus": merged["num_gpus"],
        "gpu_ids": [int(part) for part in ids.split(",")] if isinstance(ids, str) else ids,
    }
    for name in ("enable_smoothing", "smoothing_method", "force_regenerate", "resume_from", "keep_intermediates"):
        run[name] = merged.get(name)
    return config, run


def read_options(argv: Sequence[str], stored: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a command line, with what its YAML file holds."""
    return run_arguments(merge(stored or {}, vars(make_parser().parse_args(list(argv)))))
