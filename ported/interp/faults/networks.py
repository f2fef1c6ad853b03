"""Faults of attention, rotary tables, adapters and loading (spec 14: IF-01, IF-02, IF-19 to IF-21, IF-23 to IF-25, IF-34, IF-36, X)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ported.interp import keypoints, loading, sla, wan
from ported.interp.denoisers import InterpLevelDenoiser, KeypointDenoiser, TextEncoder
from ported.interp.faults.record import Port, PortFault, swap
from ported.interp.lora import LoRALinear, inject_lora
from ported.interp.refiners import WanRefiner
from ported.interp.rope import AbsoluteTimeRope
from ported.interp.sla import SparseLinearAttention
from ported.interp.wan import WanTransformer

_forward = SparseLinearAttention.forward
_set_frame_indices = AbsoluteTimeRope.set_frame_indices
_sample_keypoints = keypoints.sample_keypoints


def heads_for_length(self: SparseLinearAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The module is fed (b, h, l, d): attention runs over the heads."""
    return _forward(self, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def none_kept(self: SparseLinearAttention, blocks: int) -> int:
    """Short sequences keep no block."""
    return min(blocks, int(self.topk * blocks))


def means_over_padding(x: Tensor, size: int) -> Tensor:
    """The last block is divided by the block size although it is shorter."""
    blocks = -(-x.shape[2] // size)
    padded = F.pad(x.float(), (0, 0, 0, blocks * size - x.shape[2]))
    return padded.unflatten(2, (blocks, size)).mean(dim=3).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs are (i, i + d/2)."""
    first, second = x.chunk(2, dim=-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.cat((first * c - second * s, first * s + second * c), dim=-1).type_as(x)


def local_time(self: AbsoluteTimeRope, indices: Tensor | None) -> None:
    """Keyframes get the positions 0..K−1."""
    _set_frame_indices(self, None)


def indices_kept(self: AbsoluteTimeRope, indices: Tensor | None) -> None:
    """Clearing the indices is forgotten."""
    if indices is not None:
        _set_frame_indices(self, indices)


_context = WanRefiner.context


def projector_of_first_parameter(
    self: WanRefiner,
    level: Tensor,
    mask_s: Tensor,
    mask_prev: Tensor | None,
    conf_s: Tensor | None,
    conf_prev: Tensor | None,
) -> Tensor:
    """The projector has the dtype of the model's first parameter, a float32 table."""
    if self.projector is not None:
        self.projector.to(next(self.model.parameters()).dtype)
    return _context(self, level, mask_s, mask_prev, conf_s, conf_prev)


def guessed_layout(latents: Tensor, layout: str) -> Tensor:
    """The layout is guessed: few and fewer than the next axis means channels."""
    first, second = latents.shape[:2]
    return latents.transpose(0, 1) if first <= 32 and second > first else latents


@contextmanager
def adapters_in_attention(port: Port) -> Iterator[None]:
    """Adapters wrap an output projection whose weight attention reads itself."""
    wrapped = []
    for model in port.all(InterpLevelDenoiser):
        for name in inject_lora(model, 2, 4.0, targets=("attn",)):
            wrapped.append((model, name))
    try:
        yield
    finally:
        for model, name in wrapped:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, model.get_submodule(name).base)


def known_rebound(
    model: KeypointDenoiser,
    noise: Tensor,
    idx: Tensor,
    frames: int,
    known: Tensor | None = None,
    *rest: object,
    **more: object,
) -> Tensor:
    """The mask of known entries loses its feature axis."""
    known = torch.zeros_like(noise, dtype=torch.bool) if known is None else known
    return _sample_keypoints(model, noise, idx, frames, known[..., :1], *rest, **more)


def _no_average(model: torch.nn.Module, checkpoint: dict) -> None:
    model.load_state_dict(checkpoint["model"], strict=True)


@contextmanager
def raw_weights(port: Port) -> Iterator[None]:
    """The average of the checkpoint is ignored."""
    for model, checkpoint in port.checkpoints.items():
        _no_average(model, checkpoint)
    try:
        yield
    finally:
        for model, checkpoint in port.checkpoints.items():
            loading.load_checkpoint(model, checkpoint)


@contextmanager
def adapter_strength_one(port: Port) -> Iterator[None]:
    """alpha / rank is left out."""
    adapters = port.all(LoRALinear)
    before = [adapter.scale for adapter in adapters]
    for adapter in adapters:
        adapter.scale = 1.0
    try:
        yield
    finally:
        for adapter, scale in zip(adapters, before, strict=True):
            adapter.scale = scale


def unpooled(self: TextEncoder, text: Tensor) -> Tensor:
    """The sequence is not pooled."""
    return text


def sla_before_adapters(model: WanTransformer, sla_options: dict, lora_options: dict) -> list[str]:
    """Adapters first, attention second: the adapters miss proj_l, and the keys of a training checkpoint do not fit."""
    names = inject_lora(model, **lora_options)
    model.use_sla(**sla_options)
    return names


FAULTS: tuple[PortFault, ...] = (
    PortFault("sla_heads_for_length", "IF-01", "A10", "sparse attention fed with heads before length",
              swap(SparseLinearAttention, "forward", heads_for_length), "wan"),
    PortFault("sla_no_block_kept", "IF-02", "A4", "no key block kept on short sequences",
              swap(SparseLinearAttention, "kept_blocks", none_kept), "wan"),
    PortFault("projector_of_first_parameter", "IF-19", "N4", "frame projector in the dtype of a float32 table",
              swap(WanRefiner, "context", projector_of_first_parameter), "wan", "error"),
    PortFault("local_time_positions", "IF-20", "P2", "keyframes at positions 0..K-1",
              swap(AbsoluteTimeRope, "set_frame_indices", local_time), "wan"),
    PortFault("layout_guessed", "IF-21", "V5", "layout of latents guessed from their shape",
              swap(loading, "frames_first", guessed_layout), "loading"),
    PortFault("adapters_in_attention", "IF-23", "W8", "adapter around a projection that attention reads itself",
              adapters_in_attention, "networks", "error"),
    PortFault("known_mask_rebound", "IF-24", "C5", "mask of known entries without its feature axis",
              swap(keypoints, "sample_keypoints", known_rebound), "networks", "error"),
    PortFault("adapters_before_sla", "IF-25", "W8", "adapters before sparse attention",
              swap(wan, "adapt", sla_before_adapters), "wan", "error"),
    PortFault("raw_weights", "IF-34", "W2", "average of the checkpoint ignored", raw_weights, "sampling"),
    PortFault("text_unpooled", "IF-36", "C3", "text tokens not pooled", swap(TextEncoder, "pool", unpooled), "networks", "error"),
    PortFault("frame_indices_stale", "X", "K4", "frame indices of the call before",
              swap(AbsoluteTimeRope, "set_frame_indices", indices_kept), "wan"),
    PortFault("sla_means_over_padding", "X", "A2", "pooled rows of a short block divided by the block size",
              swap(sla, "block_means", means_over_padding), "wan"),
    PortFault("rope_halves", "X", "P1", "rotary pairs (i, i + d/2)", swap(wan, "rotate", rotate_halves), "wan"),
    PortFault("adapter_strength_one", "X", "W7", "alpha over rank left out", adapter_strength_one, "wan"),
)  # fmt: skip
