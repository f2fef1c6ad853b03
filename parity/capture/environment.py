"""The environment block of a run: what besides the model decides the numbers. Recorded on both sides, differences are reported."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "numpy", "safetensors", "transformers", "diffusers", "einops")
_MACHINE = frozenset({"python", "platform", "revision"})  # recorded, but no reason for other numbers


def describe_environment() -> dict[str, Any]:
    """Return versions, device and the switches that change numbers (TF32, SDPA backends, determinism, default dtype, threads)."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "sdpa_flash": torch.backends.cuda.flash_sdp_enabled(),
        "sdpa_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "sdpa_math": torch.backends.cuda.math_sdp_enabled(),
        "bf16_reduced_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "grad": torch.is_grad_enabled(),
        "cuda": torch.version.cuda or "",
        "revision": _revision(os.getcwd()),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for name in _LIBRARIES:
        if name in sys.modules:
            found[name] = _version(name)
    return found


def environment_differences(reference: Mapping[str, Any], port: Mapping[str, Any]) -> list[str]:
    """Return one line for each entry that both sides have with different values (machine details left out)."""
    common = [k for k in reference if k in port and k not in _MACHINE]
    return [f"{k}: {reference[k]} (reference), {port[k]} (port)" for k in common if reference[k] != port[k]]


def git_revision(folder: Path | None = None) -> str:
    """Return the git commit of the working folder, or an empty string."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=folder or os.getcwd(),
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


@functools.cache
def _revision(folder: str) -> str:
    """The code that runs is what was imported: asked once a process."""
    return git_revision(Path(folder))


@functools.cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules[name], "__version__", "?"))
