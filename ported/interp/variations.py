"""Changes that a right port may make: no divergence may be reported for them beyond rounding.

Like faults they are context managers on a `Port`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp import flow, matching, sla, temporal, training
from ported.interp.faults.record import Port, patched
from ported.interp.film import FilmLayer
from ported.interp.lora import LoRALinear
from ported.interp.refiners import WanRefiner
from ported.interp.sinkhorn import SinkhornWarpInterpolator
from ported.interp.sla import SparseLinearAttention


@dataclass(frozen=True)
class PortVariation:
    """A right change as a switch."""

    name: str
    text: str
    inject: Callable[[Port], AbstractContextManager[None]]


def swap(owner: Any, name: str, value: Any) -> Callable[[Port], AbstractContextManager[None]]:
    """One function in place of another that computes the same."""
    return lambda port: patched(owner, name, value)


def sinkhorn_in_place(logits: Tensor, iterations: int) -> Tensor:
    """Rows, then columns, a new matrix each time."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits


def smooth_by_convolution(video: Tensor, kernel: Tensor) -> Tensor:
    """One depth-wise convolution."""
    weight = kernel.to(video.dtype).expand(video.shape[-1], 1, -1)
    return F.conv1d(video.mT, weight, padding=len(kernel) // 2, groups=video.shape[-1]).mT


def linear_by_weights(idx: Tensor, values: Tensor, frames: int) -> Tensor:
    """A matrix of weights times the keyframes."""
    number, left, right = temporal.segments(idx, frames)
    t = torch.arange(frames, device=idx.device)
    weight = ((t - left).to(values.dtype) / (right - left).clamp(min=1).to(values.dtype))[..., None]
    table = torch.zeros(*number.shape, idx.shape[1], dtype=values.dtype)
    table = table.scatter(2, number[..., None], 1 - weight).scatter(2, number[..., None] + 1, weight)
    return temporal.restore(table @ values, idx, values)


def sparse_by_mask(q: Tensor, k: Tensor, v: Tensor, lut: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Dense attention under a mask."""
    blocks = -(-k.shape[2] // sizes[1])
    kept = torch.zeros(*lut.shape[:3], blocks, dtype=torch.bool).scatter(-1, lut, True)
    rows = torch.arange(q.shape[2]) // sizes[0]
    columns = torch.arange(k.shape[2]) // sizes[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=kept[:, :, rows][..., columns])


def sparse_by_flex(q: Tensor, k: Tensor, v: Tensor, lut: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Flex attention with a block mask."""
    return sla.flex_sparse(q, k, v, lut, sizes)


def cost_volume_by_shift(z0: Tensor, z1: Tensor, radius: int, downscale: int, normalise: bool = True) -> Tensor:
    """One product a shift."""
    full = z0.shape[-2:]
    if downscale > 1:
        z0, z1 = F.avg_pool2d(z0, downscale), F.avg_pool2d(z1, downscale)
    if normalise:
        z0, z1 = F.normalize(z0, dim=1, eps=1e-6), F.normalize(z1, dim=1, eps=1e-6)
    c, h, w = z0.shape[1:]
    padded = F.pad(z1, (radius,) * 4, mode="replicate")
    side = range(2 * radius + 1)
    volume = [(z0 * padded[:, :, y : y + h, x : x + w]).sum(dim=1) / c**0.5 for y in side for x in side]
    return F.interpolate(torch.stack(volume, dim=1), size=full, mode="bilinear", align_corners=False)


def attention_written_out(self: FilmLayer, x: Tensor, cond: Tensor | None = None) -> Tensor:
    """Softmax attention in three lines instead of the library's module."""
    h = self.modulate(self.norm1(x), self.film1 if self.modulated else None, cond)
    packed = F.linear(h, self.attn.in_proj_weight, self.attn.in_proj_bias)
    heads = self.attn.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    x = x + self.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return x + self.ff(self.modulate(self.norm2(x), self.film2 if self.modulated else None, cond))


def loss_by_einsum(delta: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """One contraction instead of two sums."""
    error = delta - target
    total = torch.einsum("...d,...d,...->", error, error, weights.to(error.dtype))
    return total / (weights.sum() * delta.shape[-1] + 1e-8)


@contextmanager
def one_candidate_at_a_time(port: Port) -> Iterator[None]:
    """Another chunk of the search."""
    with ExitStack() as stack:
        for warper in port.all(SinkhornWarpInterpolator):
            stack.enter_context(patched(warper, "se2_chunk", 1))
        yield


_match_windows = matching.match_windows


def windows_in_two(f0: Tensor, f1: Tensor, size: tuple[int, int], settings: Any) -> tuple[Tensor, ...]:
    """Two products instead of one."""
    half = (len(f0) + 1) // 2
    parts = [_match_windows(a, b, size, settings) for a, b in zip(f0.split(half), f1.split(half), strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@contextmanager
def merged_adapters(port: Port) -> Iterator[None]:
    """Adapters work with their merged weight."""

    def forward(self: LoRALinear, x: Tensor) -> Tensor:
        return F.linear(x, self.merged_weight(), self.base.bias)

    with patched(LoRALinear, "forward", forward):
        yield


_context = WanRefiner.context


def frame_tokens_first(self: WanRefiner, *args: Any) -> Tensor:
    """Frame tokens before the text: cross attention does not see the order."""
    whole = _context(self, *args)
    text = self.text.shape[1]
    return torch.cat((whole[:, text:], whole[:, :text]), dim=1)


def sorted_blocks(self: SparseLinearAttention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept blocks in ascending order."""
    pooled_q, pooled_k, score, lut = _table(self, q, k)
    return pooled_q, pooled_k, score, lut.sort(dim=-1).values


_table = SparseLinearAttention.table


@contextmanager
def strided_weights(port: Port) -> Iterator[None]:
    """Weights of convolutions in another memory format."""
    before = [(m, m.weight.data) for m in port.all(nn.Conv2d)]
    for module, weight in before:
        module.weight.data = weight.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for module, weight in before:
            module.weight.data = weight


def unfused_optimiser(self: training.AdamW, parameters: Any, lr: float = 1e-4, weight_decay: float = 1e-4) -> None:
    """One parameter at a time."""
    self.parameters = list(parameters)
    self.inner = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay, foreach=False)


VARIATIONS: dict[str, PortVariation] = {
    v.name: v
    for v in (
        PortVariation("sinkhorn_in_place", "log matrix rewritten each time", swap(matching, "sinkhorn_log", sinkhorn_in_place)),
        PortVariation("windows_in_two", "windows matched in two products", swap(matching, "match_windows", windows_in_two)),
        PortVariation("one_candidate_at_a_time", "search in chunks of one", one_candidate_at_a_time),
        PortVariation("smooth_by_convolution", "smoothing by a depth-wise convolution", swap(temporal, "smooth", smooth_by_convolution)),
        PortVariation("linear_by_weights", "interpolation by a weight matrix", swap(temporal, "linear", linear_by_weights)),
        PortVariation("sparse_by_mask", "dense attention under a mask", swap(sla, "gathered_sparse", sparse_by_mask)),
        PortVariation("sparse_by_flex", "flex attention", swap(sla, "gathered_sparse", sparse_by_flex)),
        PortVariation("sorted_blocks", "kept blocks in order", swap(SparseLinearAttention, "table", sorted_blocks)),
        PortVariation("cost_volume_by_shift", "cost volume shift by shift", swap(flow, "cost_volume", cost_volume_by_shift)),
        PortVariation("attention_written_out", "attention written out", swap(FilmLayer, "forward", attention_written_out)),
        PortVariation("loss_by_einsum", "loss by one contraction", swap(training, "weighted_loss", loss_by_einsum)),
        PortVariation("merged_adapters", "adapters merged", merged_adapters),
        PortVariation("frame_tokens_first", "frame tokens before the text", swap(WanRefiner, "context", frame_tokens_first)),
        PortVariation("strided_weights", "convolution weights channels last", strided_weights),
        PortVariation("unfused_optimiser", "optimiser without foreach", swap(training.AdamW, "__init__", unfused_optimiser)),
    )
}  # fmt: skip
