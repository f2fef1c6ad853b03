"""Families of models that edits are tried on: tiny configurations of other people's libraries with random weights. Half of them are never tuned on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import CaseError

# Families (or their near relatives) that the suite of this repository already uses: whatever their name hashes to, they count as tuned on.
SEEN = ("llama", "t5", "clip", "whisper", "ltx", "wan", "unet", "autoencoder_kl")


@dataclass(frozen=True)
class Family:
    """One architecture. build() returns the model with its weights; inputs() its keyword arguments; run(model, **inputs) calls it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    run: Callable[..., Any] | None = None

    @property
    def half(self) -> str:
        """Return "tuning" or "held"."""
        return "tuning" if self.name in SEEN or not _bit(self.name) else "held"


def _bit(name: str) -> int:
    """Return the lowest bit of the first byte of SHA-256 of the name: the rule of the split."""
    return hashlib.sha256(name.encode()).digest()[0] & 1


def families(half: str = "", name: str = "") -> tuple[Family, ...]:
    """Return the families of a half ("tuning", "held", "" for both), or the one that is named."""
    from parity.lab.mutation.families_diffusers import FAMILIES as OF_DIFFUSERS
    from parity.lab.mutation.families_transformers import FAMILIES as OF_TRANSFORMERS

    every = (*OF_DIFFUSERS, *OF_TRANSFORMERS)
    if half not in ("", "tuning", "held"):
        raise CaseError(f"no half '{half}' of the families; there are: tuning, held")
    if name and name not in [f.name for f in every]:
        raise CaseError(f"no family '{name}'; there are: {', '.join(f.name for f in every)}")
    return tuple(f for f in every if half in ("", f.half) and name in ("", f.name))


def finish(model: nn.Module) -> nn.Module:
    """Move what starts at zero or one, so that gains, biases and small weights matter; the same on every machine."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.1 if parameter.dim() == 1 else 0.05) * noise)
    return model.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int, below: int = 60, seed: int = 5) -> Tensor:
    """Return token ids [batch, length] from 3 to `below`."""
    return torch.randint(3, below, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int, short: int = 3) -> Tensor:
    """Return an attention mask [batch, length] whose last row ends `short` tokens early."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - short :] = 0
    return mask
