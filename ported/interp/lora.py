"""Low-rank adapters (spec 8.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A Linear with a low-rank branch, in its dtype and on its device."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_A = nn.Linear(base.in_features, rank, bias=False).to(base.weight)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False).to(base.weight)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.base(x), self.lora_B(self.lora_A(self.dropout(x))), alpha=self.scale)

    def merged_weight(self) -> Tensor:
        """One weight for both branches."""
        return torch.addmm(self.base.weight, self.lora_B.weight, self.lora_A.weight, alpha=self.scale)


def replace_child(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def inject_lora(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str] = ("attn", "ffn"), dropout: float = 0.0
) -> list[str]:
    """Wrap the Linears whose name holds a target; only adapters stay trainable. Returns the wrapped names."""
    if rank <= 0:
        return []
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and any(t in n for t in targets)}
    for name, module in found.items():
        replace_child(model, name, LoRALinear(module, rank, alpha, dropout))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return list(found)


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its Linear."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear)]:
        module.base.weight.data = module.merged_weight().data
        replace_child(model, name, module.base)
