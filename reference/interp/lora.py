"""Low-rank adapters (spec 8.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """`y = base(x) + (alpha/rank) · B(A(dropout(x)))`; B starts at zero, so a fresh adapter changes nothing."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base, self.scale = base, alpha / rank
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **place)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))

    def merged_weight(self) -> Tensor:
        """`W + (alpha/rank) B A`."""
        return self.base.weight + self.scale * self.lora_B.weight @ self.lora_A.weight


def inject_lora(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str] = ("attn", "ffn"), dropout: float = 0.0
) -> list[str]:
    """Wrap every Linear whose dotted name contains a target, freeze all but the adapters, return the wrapped names."""
    if rank <= 0:
        return []
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(target in name for target in targets)
    ]
    for name in names:
        parent_name, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, leaf, LoRALinear(getattr(parent, leaf), rank, alpha, dropout))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return names


def merge_lora(model: nn.Module) -> None:
    """Replace every adapter by one Linear with the merged weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent_name, _, leaf = name.rpartition(".")
            merged = module.base
            with torch.no_grad():
                merged.weight.copy_(module.merged_weight())
            setattr(model.get_submodule(parent_name), leaf, merged)
