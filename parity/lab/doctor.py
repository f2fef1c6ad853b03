"""`parity doctor`: is this environment fit, and what in it decides numbers?"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch


@dataclass(frozen=True)
class Finding:
    """One line: `mark` is ok, note, warn or FAIL."""

    mark: str
    name: str
    text: str


def examine() -> list[Finding]:
    """Check versions, devices, the switches that change numbers, codecs, and the cases of this project."""
    checks: tuple[Callable[[], list[Finding]], ...] = (_python, _packages, _devices, _switches, _codecs, _disk, _cases)
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    good = sys.version_info >= (3, 11)
    return [
        Finding(
            "ok" if good else "FAIL",
            "python",
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        )
    ]


def _packages() -> list[Finding]:
    found = []
    for name, needed in (
        ("torch", True),
        ("numpy", True),
        ("safetensors", True),
        ("einops", True),
        ("scikit-image", True),
        ("matplotlib", True),
    ):
        found.append(_version(name, "FAIL" if needed else "note"))
    return found + [
        _version(name, "note") for name in ("transformers", "diffusers", "av", "opencv-python-headless", "numba")
    ]


def _version(name: str, otherwise: str) -> Finding:
    try:
        return Finding("ok", name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(otherwise, name, f"not installed: pip install {name}")


def _devices() -> list[Finding]:
    found = [Finding("ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found.append(Finding("ok", "cuda", f"{torch.version.cuda}, {', '.join(names)}"))
    else:
        found.append(Finding("note", "cuda", "no device; everything runs on the CPU"))
    return found


def _switches() -> list[Finding]:
    precision = torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    backends = [
        n
        for n, on in (
            ("flash", torch.backends.cuda.flash_sdp_enabled()),
            ("efficient", torch.backends.cuda.mem_efficient_sdp_enabled()),
            ("math", torch.backends.cuda.math_sdp_enabled()),
        )
        if on
    ]
    return [
        Finding(
            "ok" if precision == "highest" else "warn",
            "float32 matmul precision",
            f"{precision} (highest compares best; torch.set_float32_matmul_precision)",
        ),
        Finding(
            "note" if tf32 else "ok",
            "TF32 convolutions on CUDA",
            "on: relative differences of 3e-4 are honest" if tf32 else "off",
        ),
        Finding("ok", "attention backends", ", ".join(backends)),
        Finding("note", "deterministic algorithms", "on" if torch.are_deterministic_algorithms_enabled() else "off"),
        Finding(
            "ok" if torch.get_default_dtype() is torch.float32 else "warn",
            "default dtype",
            str(torch.get_default_dtype()).removeprefix("torch."),
        ),
    ]


def _codecs() -> list[Finding]:
    try:
        av = importlib.import_module("av")
    except ImportError:
        return [Finding("note", "video codecs", "av is not installed: frame folders and tensors only")]
    have = [name for name in ("ffv1", "libx264", "h264", "png") if name in av.codecs_available]
    return [Finding("ok" if "ffv1" in have else "warn", "video codecs", ", ".join(have) or "none of ffv1, h264, png")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    return [Finding("ok" if free > 2 else "warn", "disk", f"{free:.0f} GiB free here")]


def _cases() -> list[Finding]:
    from parity.case.discovery import find_project, find_systems
    from parity.errors import ParityError

    try:
        systems = find_systems()
    except ParityError as error:
        return [Finding("FAIL", "cases", str(error))]
    names = ", ".join(systems) or "none: add [tool.parity] cases to pyproject.toml"
    return [Finding("ok" if systems else "note", "cases", f"{names} (project {find_project().name})")]
