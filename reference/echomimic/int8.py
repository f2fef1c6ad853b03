"""INT8 weight-only quantisation of Linear layers, as torchao up to 0.14 does it (spec 9, 11).

Officially an opt-in for the VAE and the reference network only. Everything is computed in the weight's dtype; in
float16 two ranges are left: the product before its scale (D1) and the reciprocal of a small scale (D2).
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

LEVELS = 127.5
SMALLEST_SCALE = 1.1920929e-07
Order = Literal["after", "before", "fp32"]


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, a scale for each output row: (out, in) -> int8 (out, in), scale (out,) in the weight's dtype."""
    scale = (weight.abs().amax(dim=1) / LEVELS).clamp(min=SMALLEST_SCALE)
    levels = (weight * (1.0 / scale)[:, None]).round().clamp(-128, 127)
    return levels.nan_to_num(nan=0.0).to(torch.int8), scale  # 0·inf of a zero weight in a tiny row is cast to 0


class Int8Linear(nn.Module):
    """A quantised Linear. `order`: scale after the product (torchao), before it, or the product in float32.

    `exact`: levels from a float32 copy of the weights (cures D2).
    """

    def __init__(self, linear: nn.Linear, order: Order = "after", exact: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach()
        q, scale = quantise(weight.float() if exact else weight)
        self.order = order
        self.register_buffer("q", q)
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        y = self.scaled(input)
        return y if self.bias is None else y + self.bias

    def scaled(self, x: Tensor) -> Tensor:
        if self.order == "before":
            return x @ (self.q.to(x.dtype) * self.scale[:, None]).t()
        if self.order == "fp32":
            return (self.product(x.float()) * self.scale.float()).to(x.dtype)
        return self.product(x) * self.scale

    def product(self, x: Tensor) -> Tensor:
        """`x · qᵀ`, stored in the dtype of x: up to amax(row)·127 times the layer's output."""
        return x @ self.q.to(x.dtype).t()


def linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every Linear with its owner and its name there."""
    for owner in list(root.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                yield owner, name, child


def quantise_linears(root: nn.Module, make: Callable[[nn.Linear], nn.Module] = Int8Linear) -> int:
    """Replace every Linear below `root` in place; return how many there were."""
    count = 0
    for owner, name, linear in linears(root):
        if isinstance(owner, nn.ModuleList):
            owner[int(name)] = make(linear)
        else:
            setattr(owner, name, make(linear))
        count += 1
    return count


def quantise_official(vae: nn.Module, reference_unet: nn.Module) -> None:
    """What the official check box does: the VAE and the reference network, never the denoiser (spec 9)."""
    for network in (vae, reference_unet):
        quantise_linears(network)
