"""Latents and weights from files (spec 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def frames_first(latents: Tensor, layout: str) -> Tensor:
    """`(t, c, h, w)` from a clip whose layout is "tchw" or "cthw"."""
    orders = {"tchw": (0, 1, 2, 3), "cthw": (1, 0, 2, 3)}
    if layout not in orders:
        raise ValueError(f"unknown layout {layout!r}, expected tchw or cthw")
    return latents.permute(orders[layout])


@torch.no_grad()
def load_checkpoint(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Weights, strictly, and the moving average in their place when the checkpoint has one."""
    model.load_state_dict(checkpoint["model"], strict=True)
    if checkpoint.get("ema") is not None:
        learning = [p for p in model.parameters() if p.requires_grad]
        if len(learning) != len(checkpoint["ema"]["shadow"]):
            raise ValueError(f"{len(checkpoint['ema']['shadow'])} averages for {len(learning)} trainable parameters")
        torch._foreach_copy_(learning, list(checkpoint["ema"]["shadow"]))
