"""Latents and weights from files (spec 11; layouts: IF-21)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

LAYOUTS = ("tchw", "cthw")


def frames_first(latents: Tensor, layout: str) -> Tensor:
    """Latents of a clip as `(t, c, h, w)`. The layout is stated: shapes do not tell frames from channels.

    Errors: ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    return latents if layout == "tchw" else latents.transpose(0, 1)


def load_checkpoint(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load `model` strictly, then, when there is one, the moving average over the trainable parameters in their order."""
    model.load_state_dict(checkpoint["model"], strict=True)
    average = checkpoint.get("ema")
    if average is None:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter, shadow in zip(learning, average["shadow"], strict=True):
        parameter.data.copy_(shadow)
