"""Faults of time embedding, modulation, norms, feed-forward and head of the DiT (spec D9-D12 and the list below)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from diffusers.models.normalization import FP32LayerNorm
from einops import rearrange
from torch import Tensor, nn

from ported.wan.faults.open_parts import OpenBlock
from ported.wan.faults.record import Port, PortFault, patched, recast


class _RoundedTimesteps(Timesteps):
    def forward(self, timesteps: Tensor) -> Tensor:
        return super().forward(timesteps.bfloat16())


@contextmanager
def timestep_bf16(port: Port) -> Iterator[None]:
    """The timestep is cast to bfloat16 before the sinusoid: 721 becomes 720."""
    with recast([port.dit.condition_embedder.timesteps_proj], _RoundedTimesteps):
        yield


@contextmanager
def time_halves_swapped(port: Port) -> Iterator[None]:
    """Sine half first, cosine half second."""
    with patched(port.dit.condition_embedder.timesteps_proj, "flip_sin_to_cos", False):
        yield


class _HalfLayerNorm(FP32LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.bfloat16() for p in (self.weight, self.bias))
        return F.layer_norm(inputs.bfloat16(), self.normalized_shape, weight, bias, self.eps).to(inputs.dtype)


def block_norms(port: Port) -> list[FP32LayerNorm]:
    """The three LayerNorms of every block."""
    return [norm for block in port.dit.blocks for norm in (block.norm1, block.norm2, block.norm3)]


@contextmanager
def layernorm_half(port: Port) -> Iterator[None]:
    """The LayerNorms of the blocks run in bfloat16."""
    with recast(block_norms(port), _HalfLayerNorm):
        yield


@contextmanager
def layernorm_eps(port: Port) -> Iterator[None]:
    """The LayerNorms of the blocks use the default eps 1e-5 instead of 1e-6."""
    with ExitStack() as stack:
        for norm in block_norms(port):
            stack.enter_context(patched(norm, "eps", 1e-5))
        yield


class _RoundedModulation(OpenBlock):
    def modulation(self, temb: Tensor) -> tuple[Tensor, ...]:
        return (self.scale_shift_table + temb.float()).bfloat16().float().chunk(6, dim=1)


@contextmanager
def modulation_bf16(port: Port) -> Iterator[None]:
    """A fused norm-scale-shift kernel takes scale, shift and gate in bfloat16."""
    with recast(port.dit.blocks, _RoundedModulation):
        yield


class _ScaleFirst(OpenBlock):
    def modulation(self, temb: Tensor) -> tuple[Tensor, ...]:
        scale, shift, gate, ffn_scale, ffn_shift, ffn_gate = super().modulation(temb)
        return shift, scale, gate, ffn_shift, ffn_scale, ffn_gate


@contextmanager
def shift_and_scale_swapped(port: Port) -> Iterator[None]:
    """The six modulation chunks are read scale, shift, gate instead of shift, scale, gate."""
    with recast(port.dit.blocks, _ScaleFirst):
        yield


@contextmanager
def norms_exchanged(port: Port) -> Iterator[None]:
    """The affine norm sits in front of the feed-forward and the bare one in front of cross attention."""
    exchanged = list(port.dit.blocks)
    for block in exchanged:
        block.norm2, block.norm3 = block.norm3, block.norm2
    try:
        yield
    finally:
        for block in exchanged:
            block.norm2, block.norm3 = block.norm3, block.norm2


@contextmanager
def keep_list_ignored(port: Port) -> Iterator[None]:
    """Everything is bfloat16: time embedder, modulation tables, norms and rotary tables too."""
    tensors = [*port.dit.parameters(), *port.dit.buffers()]
    kept = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.bfloat16()
    try:
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


@contextmanager
def ffn_gelu_exact(port: Port) -> Iterator[None]:
    """The exact GELU in the feed-forward, where the model has the tanh approximation."""
    with ExitStack() as stack:
        for block in port.dit.blocks:
            stack.enter_context(patched(block.ffn.net[0], "approximate", "none"))
        yield


class _PatchRowsColumnsSwapped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x), "b l (p q c) -> b l (q p c)", p=2, q=2)


@contextmanager
def unpatchify_swapped(port: Port) -> Iterator[None]:
    """Rows and columns within a patch are exchanged on the way out."""
    with recast([port.dit.proj_out], _PatchRowsColumnsSwapped):
        yield


@contextmanager
def head_halves_swapped(port: Port) -> Iterator[None]:
    """The head's table is stored scale, shift (the usual converter slip of the last layer)."""
    table = port.dit.scale_shift_table
    kept, table.data = table.data, torch.roll(table.data, 1, dims=1)
    try:
        yield
    finally:
        table.data = kept


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "timestep_bf16", "D9", "T1", "timestep cast to bfloat16 before the sinusoid", timestep_bf16, "dit", {"t": 721}
    ),
    PortFault("time_halves_swapped", "D+", "T2", "sine and cosine halves exchanged", time_halves_swapped, "dit"),
    PortFault("layernorm_half", "D10", "N3", "block LayerNorms in bfloat16", layernorm_half, "dit"),
    PortFault("layernorm_eps", "B", "N1", "block LayerNorms with eps 1e-5", layernorm_eps, "dit"),
    PortFault("modulation_bf16", "D11", "N4", "modulation rounded to bfloat16", modulation_bf16, "dit"),
    PortFault(
        "shift_and_scale_swapped", "B", "W5", "modulation chunks read scale first", shift_and_scale_swapped, "dit"
    ),
    PortFault("head_halves_swapped", "B", "W5", "head modulation stored scale first", head_halves_swapped, "dit"),
    PortFault("norms_exchanged", "D12", "W2", "norm2 and norm3 exchanged", norms_exchanged, "dit"),
    PortFault(
        "keep_list_ignored",
        "D2",
        "W11",
        "modules that must stay float32 cast to bfloat16",
        keep_list_ignored,
        "dit",
        {"dtype": "bf16"},
    ),
    PortFault(
        "ffn_gelu_exact", "B", "N2", "exact GELU instead of the tanh form in the feed-forward", ffn_gelu_exact, "dit"
    ),
    PortFault("unpatchify_swapped", "B", "V5", "rows and columns of a patch exchanged", unpatchify_swapped, "dit"),
)
