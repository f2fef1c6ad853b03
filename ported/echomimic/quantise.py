"""INT8 weight-only quantisation of Linear layers (spec 11), safe by default, and the unsafe orders for comparison.

Scales are symmetric, one for each output row: `scale = max(amax / 127.5, 1.19e-7)`, `q = clamp(round(w / scale))`. Safe: levels from
a float32 copy of the weights, product in float32. What torchao does (product in the activation's dtype, then the scale; levels in the
weight's dtype) leaves float16's range in two places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Order = Literal["after", "before", "fp32"]
Backend = Literal["own", "torchao"]
FLOOR = torch.finfo(torch.float32).eps


def levels(weight: Tensor, exact: bool = True) -> tuple[Tensor, Tensor]:
    """(out, in) -> int8 levels, scale (out,) in the weight's dtype; `exact`: levels from a float32 copy."""
    w = weight.float() if exact else weight
    scale = (w.abs().amax(dim=1) / 127.5).clamp_min(FLOOR)
    q = torch.clamp(torch.round(w * (1.0 / scale)[:, None]), -128, 127)
    return torch.nan_to_num(q, nan=0.0).to(torch.int8), scale.to(weight.dtype)


class WeightOnlyInt8(nn.Module):
    """A Linear whose weight is int8. `order`: see `multiply`; `keep`: hold the weight too, so that it can be undone."""

    def __init__(self, linear: nn.Linear, order: Order = "fp32", exact: bool = True, keep: bool = False) -> None:
        super().__init__()
        self.order = order
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.source = weight if keep else None
        q, scale = levels(weight, exact)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def plain(self) -> nn.Linear:
        """The layer as it was.

        Errors: ValueError unless it was built with `keep`.
        """
        if self.source is None:
            raise ValueError("this int8 layer does not hold its weight: build it with keep=True")
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.source, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias, requires_grad=False)
        return layer

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, for whoever asks for its shape, dtype or device."""
        return self.q * self.scale[:, None]

    def forward(self, input: Tensor) -> Tensor:
        y = self.multiply(input)
        return y if self.bias is None else y + self.bias

    def multiply(self, x: Tensor) -> Tensor:
        if self.order == "before":
            return F.linear(x, self.weight.to(x.dtype))
        if self.order == "after":
            return self.product(x) * self.scale
        return (self.product(x.float()) * self.scale.float()).to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        """`x · qᵀ` before the scale, in the dtype of x."""
        return F.linear(x, self.q.to(x.dtype))


def quantise(
    network: nn.Module,
    order: Order = "fp32",
    exact: bool = True,
    keep: bool = False,
    only: Callable[[str], bool] = lambda path: True,
) -> list[str]:
    """Replace the Linear layers of a network in place; return their paths."""
    found = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear) and only(path)]
    for path, layer in found:
        network.set_submodule(path, WeightOnlyInt8(layer, order, exact, keep))
    return [path for path, _ in found]


def torchao_available() -> bool:
    """Whether torchao is there with the function that the server calls (it left recent versions)."""
    try:
        from torchao.quantization import int8_weight_only, quantize_  # noqa: F401
    except ImportError:
        return False
    return True


def quantise_with(network: nn.Module, backend: Backend = "own", order: Order = "fp32") -> str:
    """Quantise with torchao where it is asked for and there, else with the layers above; return what was used.

    torchao scales after the product in the activation's dtype, so in float16 it is refused.
    """
    if backend == "torchao" and torchao_available():
        if any(p.dtype == torch.float16 for p in network.parameters()):
            raise ValueError("torchao's int8_weight_only leaves float16's range: use bfloat16, or the backend 'own'")
        from torchao.quantization import int8_weight_only, quantize_

        quantize_(network, int8_weight_only())
        return "torchao"
    quantise(network, order)
    return "own" if backend == "own" else "own (torchao is not installed)"
