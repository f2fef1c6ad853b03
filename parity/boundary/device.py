"""Names of devices, checked before anything is built."""

from __future__ import annotations

from parity.boundary.text import one_line
from parity.errors import CaseError


def check_device(name: str) -> None:
    """Raise CaseError for a device that is none, or that is not here."""
    import torch

    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (index.isascii() and index.isdecimal() and len(index) < 4)):
        raise CaseError(f"unknown device {one_line(name, 40)!r}; there are: cpu, cuda, cuda:<number>, mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CaseError("no CUDA device is available here; leave out --device cuda")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise CaseError("no MPS device is available here; leave out --device mps")
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if colon and int(index) >= there:
        raise CaseError(f"there is no device {name}: {there} {kind} device{'s' * (there > 1)} here, counted from 0")
