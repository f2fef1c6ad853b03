"""Norms of the transformer and of the CLIP tower: float32 mathematics, result cast back (spec A4, A5, A12)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import fp32_region


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32, result in the dtype of the input."""

    def __init__(self, dim: int, eps: float = 1e-6, elementwise_affine: bool = False) -> None:
        super().__init__(dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:  # (..., dim)
        return layer_norm32(x, self).to(x.dtype)


class LayerNorm32(nn.LayerNorm):
    """Layer norm that stays in float32: a plain norm under autocast, as in the image embedding (spec A8)."""

    def forward(self, x: Tensor) -> Tensor:  # (..., dim)
        return layer_norm32(x, self)


def layer_norm32(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer norm with everything cast to float32; `(..., dim)` to float32 `(..., dim)`."""
    weight = None if norm.weight is None else norm.weight.float()
    bias = None if norm.bias is None else norm.bias.float()
    with fp32_region(x.device):
        return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps)


class RMSNorm(nn.Module):
    """`u / sqrt(mean(u²) + eps)` in float32, cast to the dtype of u, times weight.

    It runs over the full width (all heads jointly). With float32 weights and a bf16 input the product, and so the
    output, is float32.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # (b, s, dim)
        u = x.float()
        u = u * torch.rsqrt(u.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return u.to(x.dtype) * self.weight
