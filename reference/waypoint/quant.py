"""Quantised linears of the engine, simulated in plain torch (spec waypoint, section 8).

The engine runs fused scaled matmuls on the GPU; here the quantised values are exact (torch's own e4m3 casts, e2m1 by
nearest value) and the matmul accumulates in float32. Not simulated: the fast accumulation of w8a8 (a shorter
accumulator on the GPU) and the tile order of any kernel. Scales are computed in float32.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from reference.waypoint.layers import MLPFusion

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E2M1_MAX = 6.0
NVFP4_BLOCK = 16


def e4m3_scale(x: Tensor) -> Tensor:
    """Return the per-tensor scale that maps max|x| to the largest e4m3 value; at least 1e-8."""
    return (x.abs().amax().float() / E4M3_MAX).clamp(min=1e-8)


def scaled_matmul(x: Tensor, w: Tensor, scale: Tensor, out_dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    """Compute x wᵀ * scale + bias with float32 accumulation and one rounding to `out_dtype`."""
    y = (x.float() @ w.float().mT) * scale
    return (y if bias is None else y + bias.float()).to(out_dtype)


class W8A8Linear(nn.Module):
    """Quantise weights once and activations per call, per tensor, to e4m3; fp16 out, cast back to the input's dtype.

    The bias is fp16.
    """

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        weight = source.weight.detach()
        scale = e4m3_scale(weight)
        self.register_buffer("weight", (weight.float() / scale).to(E4M3))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if source.bias is None else source.bias.detach().half())

    def forward(self, x: Tensor) -> Tensor:
        scale = e4m3_scale(x)
        x8 = (x.float() / scale).to(E4M3)
        return scaled_matmul(x8, self.weight, scale * self.weight_scale, torch.float16, self.bias).to(x.dtype)


class FP8Linear(nn.Module):
    """Divide the weight by its SIGNED maximum and cast it to e4m3.

    Activations are cast unscaled, so they are lost past 448 (torch 2.13 saturates, older casts gave NaN); bf16 out.
    """

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        weight = source.weight.detach()
        scale = weight.amax().float()
        self.register_buffer("weight", (weight.float() / scale).to(E4M3))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return scaled_matmul(x.to(E4M3), self.weight, self.weight_scale, torch.bfloat16, self.bias)


def round_e2m1(x: Tensor) -> Tensor:
    """Round to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with sign, ties to the even code, saturating."""
    grid = x.new_tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    midpoints = (grid[1:] + grid[:-1]) / 2
    magnitude = x.abs().contiguous()
    down = torch.bucketize(magnitude, midpoints, right=False)  # a midpoint goes down ...
    up = torch.bucketize(magnitude, midpoints, right=True)  # ... or up
    return grid[torch.where(down % 2 == 0, down, up)] * x.sign()


def nvfp4(x: Tensor, global_scale: Tensor | float) -> Tensor:
    """Quantise x [..., K] to 4 bits in blocks of 16 along K; returns the values in float32, still times `global_scale`.

    A block's scale is global_scale * max|block| / 6 in e4m3 (saturating); elements are e2m1.
    """
    blocks = rearrange(x.float() * global_scale, "... (n b) -> ... n b", b=NVFP4_BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / E2M1_MAX).clamp(max=E4M3_MAX).to(E4M3).float()
    elements = torch.where(scale > 0, blocks / scale.where(scale > 0, 1.0), 0.0)
    return rearrange(round_e2m1(elements) * scale, "... n b -> ... (n b)")


class NVFP4Linear(nn.Module):
    """Quantise weights (global scale 1/max|W|) and activations (global scale 1) to nvfp4.

    Output scale max|W|, input dtype out.

    A fake quantisation: `weight` holds the dequantised values of the scaled weight in float32, not packed nibbles.
    """

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        weight = source.weight.detach()
        largest = weight.abs().amax().float().clamp(min=1e-8)  # an all-zero weight stays zero
        self.register_buffer("weight", nvfp4(weight, 1 / largest))
        self.register_buffer("weight_scale", largest)
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return scaled_matmul(nvfp4(x, 1.0), self.weight, self.weight_scale, x.dtype, self.bias)


QUANTIZERS: dict[str, type[nn.Module]] = {"w8a8": W8A8Linear, "fp8": FP8Linear, "nvfp4": NVFP4Linear}


def quantize(model: nn.Module, quant: str | None) -> nn.Module:
    """Replace every eligible linear of `model` in place and return it; None changes nothing.

    Eligible: an nn.Linear whose weight is bf16 with both sizes divisible by 32. Fusions must be split first
    (`apply_inference_patches`), because an unsplit one reads its weight directly.
    """
    if quant is None:
        return model
    if quant not in QUANTIZERS:
        raise ValueError(f"quant must be None or one of {sorted(QUANTIZERS)}, not {quant!r}")
    if any(isinstance(m, MLPFusion) for m in model.modules()):
        raise ValueError("apply the inference patches first: an unsplit MLPFusion reads its weight directly")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if is_eligible(child):
                setattr(module, name, QUANTIZERS[quant](child))
    return model


def is_eligible(module: nn.Module) -> bool:
    """Tell whether the engine quantises this module."""
    if not isinstance(module, nn.Linear):
        return False
    return module.weight.dtype == torch.bfloat16 and all(size % 32 == 0 for size in module.weight.shape)
