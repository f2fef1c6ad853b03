"""Changes that a right port may make (no divergence may be reported for them beyond rounding).

Like faults they are context managers on a `Port`; `exact` says that results must be bit-equal on the same machine.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from ported.wan import build
from ported.wan.faults.open_parts import OpenBlock, OpenProcessor, processors
from ported.wan.faults.record import Part, Port, recast


@dataclass(frozen=True)
class PortVariation:
    """`precision` is the dtype whose rounding the change may cost: "exact", "fp32" or "bf16"."""

    name: str
    text: str
    inject: Callable[[Port], AbstractContextManager[None]]
    part: Part
    precision: str = "fp32"


@contextmanager
def cast(module: nn.Module, dtype: torch.dtype, keep: bool) -> Iterator[None]:
    """Cast a module's parameters (as the library loads it, or all of them), and put the old tensors back."""
    parameters = list(module.parameters())
    kept = [parameter.data for parameter in parameters]
    if keep:
        build.cast_like_library(module, dtype)
    else:
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


@contextmanager
def dit_bf16(port: Port) -> Iterator[None]:
    """The DiT in bfloat16 with the library's float32 modules."""
    with cast(port.dit, torch.bfloat16, keep=True):
        yield


@contextmanager
def text_bf16(port: Port) -> Iterator[None]:
    """The text encoder in bfloat16, as it is published."""
    with cast(port.text, torch.bfloat16, keep=True):
        yield


@contextmanager
def math_attention(port: Port) -> Iterator[None]:
    """The plain kernel of scaled dot product attention."""
    with attention_backend("_native_math"):
        yield


@contextmanager
def flash_attention(port: Port) -> Iterator[None]:
    """torch's own flash kernel, which torch has for the CPU too (the library's `_native_flash` asks for CUDA)."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        yield


@contextmanager
def fused_projections(port: Port) -> Iterator[None]:
    """`fuse_projections()`: q, k, v in one product (k, v in cross attention)."""
    modules = [module for module in port.dit.modules() if isinstance(module, WanAttention)]
    for module in modules:
        module.fuse_projections()
    try:
        yield
    finally:
        for module in modules:
            module.unfuse_projections()


class _ChunkedFeedForward(nn.Module):
    def __init__(self, ffn: nn.Module, size: int):
        super().__init__()
        self.net, self.size = ffn.net, size

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = []
        for x in hidden_states.split(self.size, dim=1):
            for layer in self.net:
                x = layer(x)
            rows.append(x)
        return torch.cat(rows, dim=1)


@contextmanager
def chunked_feed_forward(port: Port) -> Iterator[None]:
    """The feed-forward runs on 16 tokens at a time."""
    kept = [block.ffn for block in port.dit.blocks]
    for block in port.dit.blocks:
        block.ffn = _ChunkedFeedForward(block.ffn, 16)
    try:
        yield
    finally:
        for block, ffn in zip(port.dit.blocks, kept, strict=True):
            block.ffn = ffn


@contextmanager
def group_offload(port: Port) -> Iterator[None]:
    """diffusers' group offloading, block by block; on a CPU it only exercises the hooks."""
    port.dit.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, use_stream=False
    )
    try:
        yield
    finally:
        from diffusers.hooks import HookRegistry

        for module in port.dit.modules():
            registry = getattr(module, "_diffusers_hook", None)
            if isinstance(registry, HookRegistry):
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)


@contextmanager
def compiled_blocks(port: Port) -> Iterator[None]:
    """`torch.compile` of the repeated blocks, as `compile_repeated_blocks` does it, on the eager-graph backend."""
    blocks = list(port.dit.blocks)
    for block in blocks:
        block.compile(backend="aot_eager", dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@contextmanager
def open_processor(port: Port) -> Iterator[None]:
    """The attention processor written differently (methods instead of one function)."""
    with processors(port.dit, "attn1", OpenProcessor), processors(port.dit, "attn2", OpenProcessor):
        yield


@contextmanager
def open_blocks(port: Port) -> Iterator[None]:
    """The transformer block written differently."""
    with recast(port.dit.blocks, OpenBlock):
        yield


class _HeadsInTwo(OpenProcessor):
    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        halves = zip(query.chunk(2, dim=2), key.chunk(2, dim=2), value.chunk(2, dim=2), strict=True)
        return torch.cat([super(_HeadsInTwo, self).attend(*half, mask) for half in halves], dim=2)


@contextmanager
def heads_in_two(port: Port) -> Iterator[None]:
    """Heads attend in two groups, as tensor parallelism and Ulysses split them."""
    with processors(port.dit, "attn1", _HeadsInTwo), processors(port.dit, "attn2", _HeadsInTwo):
        yield


class _QueriesInTwo(OpenProcessor):
    def attend_self(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([self.attend(half, key, value) for half in query.chunk(2, dim=1)], dim=1)


@contextmanager
def queries_in_two(port: Port) -> Iterator[None]:
    """Each half of the tokens attends to all keys: sequence parallel done right."""
    with processors(port.dit, "attn1", _QueriesInTwo):
        yield


class _StridedValues(WanAttnProcessor):
    def __call__(self, attn: WanAttention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        strided = hidden_states.transpose(1, 2).contiguous().transpose(1, 2)
        return super().__call__(attn, strided, *args, **kwargs)


class _SampleBySample(WanTransformer3DModel):
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor]:
        batch = len(hidden_states)
        images = [None] * batch
        if encoder_hidden_states_image is not None:
            images = list(encoder_hidden_states_image.chunk(batch))  # flf2v has two rows a sample
        rows = zip(hidden_states.split(1), timestep.split(1), encoder_hidden_states.split(1), images, strict=True)
        return (torch.cat([super(_SampleBySample, self).forward(*row, return_dict=False)[0] for row in rows]),)


@contextmanager
def batch_split(port: Port) -> Iterator[None]:
    """One call a sample instead of one call a batch."""
    with recast([port.dit], _SampleBySample):
        yield


@contextmanager
def strided_inputs(port: Port) -> Iterator[None]:
    """Attention inputs with exchanged strides instead of contiguous ones."""
    with processors(port.dit, "attn1", _StridedValues), processors(port.dit, "attn2", _StridedValues):
        yield


@contextmanager
def channels_last(port: Port) -> Iterator[None]:
    """The patch convolution in channels-last memory."""
    conv = port.dit.patch_embedding
    kept = conv.weight.data
    conv.weight.data = kept.to(memory_format=torch.channels_last_3d)
    try:
        yield
    finally:
        conv.weight.data = kept


@contextmanager
def vae_slicing(port: Port) -> Iterator[None]:
    """The VAE takes the videos of a batch one by one."""
    port.vae.enable_slicing()
    try:
        yield
    finally:
        port.vae.disable_slicing()


@contextmanager
def vae_tiling_one_tile(port: Port) -> Iterator[None]:
    """Tiling switched on with videos no larger than one tile (256 pixels), where the library does not tile.

    With several tiles the result is another function of the input (in a random model by a relative 1), not rounding.
    """
    port.vae.enable_tiling()
    try:
        yield
    finally:
        port.vae.disable_tiling()


@contextmanager
def eager_text_attention(port: Port) -> Iterator[None]:
    """The written-out attention of the text encoder instead of the fused kernel."""
    with ExitStack() as stack:
        stack.enter_context(_implementation(port.text, "eager"))
        yield


@contextmanager
def eager_image_attention(port: Port) -> Iterator[None]:
    """The written-out attention of the image encoder instead of the fused kernel."""
    with _implementation(port.clip, "eager"):
        yield


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    kept = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(kept)


VARIATIONS: dict[str, PortVariation] = {
    variation.name: variation
    for variation in (
        PortVariation("dit_bf16", "DiT in bfloat16 with the library's float32 modules", dit_bf16, "dit", "bf16"),
        PortVariation("text_bf16", "text encoder in bfloat16", text_bf16, "text", "bf16"),
        PortVariation("math_attention", "plain attention kernel", math_attention, "dit"),
        PortVariation("flash_attention", "flash attention kernel", flash_attention, "dit"),
        PortVariation("fused_projections", "q, k, v fused", fused_projections, "dit"),
        PortVariation("chunked_feed_forward", "feed-forward in chunks of tokens", chunked_feed_forward, "dit"),
        PortVariation("group_offload", "group offloading", group_offload, "dit", "exact"),
        PortVariation("compiled_blocks", "blocks compiled", compiled_blocks, "dit"),
        PortVariation("open_processor", "attention processor in methods", open_processor, "dit", "exact"),
        PortVariation("open_blocks", "block in methods", open_blocks, "dit", "exact"),
        PortVariation("heads_in_two", "heads attend in two groups", heads_in_two, "dit"),
        PortVariation("queries_in_two", "queries attend in two groups", queries_in_two, "dit"),
        PortVariation("batch_split", "one call a sample", batch_split, "dit"),
        PortVariation("strided_inputs", "non-contiguous attention inputs", strided_inputs, "dit"),
        PortVariation("channels_last", "patch convolution in channels-last memory", channels_last, "dit"),
        PortVariation("vae_slicing", "VAE batch slicing", vae_slicing, "vae"),
        PortVariation("vae_tiling_one_tile", "VAE tiling with a single tile", vae_tiling_one_tile, "vae", "exact"),
        PortVariation("eager_text_attention", "text attention written out", eager_text_attention, "text"),
        PortVariation("eager_image_attention", "image attention written out", eager_image_attention, "clip"),
    )
}
